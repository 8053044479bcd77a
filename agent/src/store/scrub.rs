use std::sync::Arc;

use super::CHUNK;
use super::blob::Blob;
use super::errors::are_lost;
use super::handle::Store;
use super::hands::Hands;
use super::lookup::Sight;
use super::reader::read_chunk;
use super::verify::Proof;
use crate::image::Digest;

/// One blob that is looked through for damage, a piece at a time.
#[derive(Debug)]
pub struct Scrub {
    store: Store,
    digest: Digest,
    size: u64,
    /// What has checksums; `None`: it has to be hashed whole.
    proven: Option<Blob>,
    at: u64,
    is_over: bool,
}

/// What one step of a [`Scrub`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scrubbed {
    /// So many bytes were read, and are what they were; there may be more.
    Read(u64),
    /// It was read to its end: nothing is wrong with it.
    Sound,
    /// It is damaged, and was set aside: an [`Event::Damaged`](super::Event::Damaged).
    Damaged,
    /// It is gone, or can't be read for now.
    Unknown,
}

impl Store {
    /// The next blob after `after`, in the order of digests, to be looked through. `None` at the end.
    pub async fn scrub_next(&self, after: Option<&Digest>) -> Option<Scrub> {
        let after = after.copied();
        let store = self.clone();
        self.run(move |shelves| {
            let entry = shelves.index.scan(after.as_ref(), 1).pop()?;
            let (digest, size) = (entry.digest, entry.record.size);
            shelves.recount(&digest);
            let proven = match shelves.look(&digest) {
                Sight::Whole(blob) => Some(blob),
                Sight::Suspect | Sight::Nothing => None,
            };
            Some(Scrub { store, digest, size, proven, at: 0, is_over: false })
        })
        .await
        .flatten()
    }
}

impl Scrub {
    /// The blob.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Reads on, at most [`CHUNK`] bytes; all of them where nobody has proven the blob yet. What the page cache didn't
    /// have, it is not left with. After anything but [`Scrubbed::Read`], the next step says [`Scrubbed::Unknown`].
    pub async fn step(&mut self) -> Scrubbed {
        if self.is_over {
            return Scrubbed::Unknown;
        }
        let scrubbed = match &self.proven {
            Some(blob) if self.at < blob.size() => self.read(blob).await,
            Some(_) => Scrubbed::Sound,
            None => self.prove().await,
        };
        match scrubbed {
            Scrubbed::Read(bytes) => self.at += bytes,
            Scrubbed::Sound | Scrubbed::Damaged | Scrubbed::Unknown => self.is_over = true,
        }
        scrubbed
    }

    async fn read(&self, blob: &Blob) -> Scrubbed {
        let (opened, chunk) = (Arc::clone(&blob.opened), self.at / CHUNK);
        // At most a chunk.
        let len = (opened.size - self.at).min(CHUNK) as usize;
        let hands: &Hands = &self.store.shelves().reading.hands;
        let read = hands.run(move || {
            let mut buffer = opened.reading.buffers.take(len);
            match read_chunk(&opened.file, buffer.as_mut(), chunk * CHUNK, true) {
                Ok(()) => {
                    let expected = usize::try_from(chunk).ok().and_then(|at| opened.checksums.get(at));
                    Some(expected == Some(&crc32fast::hash(buffer.as_ref())))
                }
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof || are_lost(&error) => Some(false),
                Err(_) => None,
            }
        });
        match read.await {
            Ok(Some(true)) => {
                self.store.metrics().scrubbed_bytes.inc_by(len as u64);
                Scrubbed::Read(len as u64)
            }
            Ok(Some(false)) => {
                self.store.set_aside(&blob.reader(0..0)).await;
                Scrubbed::Damaged
            }
            Ok(None) | Err(_) => Scrubbed::Unknown,
        }
    }

    async fn prove(&self) -> Scrubbed {
        match self.store.check(&self.digest).await {
            Proof::Sound => {
                self.store.metrics().scrubbed_bytes.inc_by(self.size);
                Scrubbed::Sound
            }
            Proof::Wrong => Scrubbed::Damaged,
            Proof::Gone | Proof::Unknown => Scrubbed::Unknown,
        }
    }
}
