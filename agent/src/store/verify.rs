use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tracing::{debug, warn};

use super::CHUNK;
use super::errors::are_lost;
use super::index::Change;
use super::label::Label;
use super::layout::FileId;
use super::locks::held;
use super::lookup::{Lying, Sight};
use super::reader::read_chunk;
use super::record::{BlobRecord, Hold, State};
use super::shelves::Shelves;
use crate::image::Digest;

/// What hashing a file whole says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It is what its name says, and its record says so now.
    Sound,
    /// It isn't; it was set aside.
    Wrong,
    /// There is no file, or another one by now.
    Gone,
    /// It can't be read, or the store is ending.
    Unknown,
}

/// Whether somebody waits for a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hurry {
    /// Somebody wants to read it.
    Awaited,
    /// Nobody does: it steps back while blobs arrive or are read, and leaves the page cache as it found it.
    CanWait,
}

/// How many times as long as it worked one who can wait rests, while others need the disk and the processor.
const REST: u32 = 3;

impl Shelves {
    /// Waits until a suspect blob is proven or set aside. Many may wait for one; the work goes on when they leave.
    pub(super) async fn settle(self: &Arc<Self>, digest: &Digest) {
        let mut done = {
            let mut checking = held(&self.checking);
            match checking.get(digest) {
                Some(done) => done.clone(),
                None => {
                    let (sender, done) = watch::channel(());
                    checking.insert(*digest, done.clone());
                    let (shelves, digest) = (Arc::clone(self), *digest);
                    // Owned by the runtime's blocking pool; ends early when the store does. Not one of the `hands`:
                    // hashing a large blob takes longer than a disk may take to answer.
                    tokio::task::spawn_blocking(move || {
                        if matches!(shelves.look(&digest), Sight::Suspect) {
                            shelves.prove(&digest);
                        }
                        held(&shelves.checking).remove(&digest);
                        drop(sender);
                    });
                    done
                }
            }
        };
        // An error says that the sender is gone: that is the end of the work.
        while done.changed().await.is_ok() {}
    }

    /// Hashes a blob's file whole and enters what it finds. Blocks, for as long as the disk and the hash take.
    pub(super) fn prove(&self, digest: &Digest) -> Proof {
        let Lying { file, metadata, path, is_ours } = match self.find_file(digest) {
            Ok(Some(found)) => found,
            Ok(None) => return Proof::Gone,
            Err(error) => {
                warn!(%digest, %error, "can't open a blob to check it");
                return Proof::Unknown;
            }
        };
        let size = metadata.len();
        let (found, checksums) = match self.hash(&file, digest, size, Hurry::Awaited) {
            Ok(Some(hashed)) => hashed,
            Ok(None) => return Proof::Unknown,
            Err(error) => {
                warn!(%digest, %error, "can't read a blob to check it");
                if !are_lost(&error) {
                    return Proof::Unknown;
                }
                self.set_aside(digest, Some(&file));
                return Proof::Wrong;
            }
        };
        self.metrics.rechecked.inc();
        let name = self.hold_name(digest);
        let same = FileId::at(&path).is_ok_and(|there| there == FileId::of(&metadata));
        if !same {
            return Proof::Gone;
        }
        if found != *digest {
            drop(name);
            warn!(%digest, %found, size, "a file in the store is not what its name says");
            self.set_aside(digest, None);
            return Proof::Wrong;
        }
        // What containerd has a name for it has synced.
        let is_theirs = !is_ours || file.metadata().is_ok_and(|metadata| metadata.nlink() > 1);
        self.index.update(digest, |known| {
            let Label { mut media_type, mut provenance } = Label::read(&file);
            let mut hold = Hold::Own;
            if let Some(record) = known {
                media_type = record.media_type.or(media_type);
                provenance.merge(&record.provenance);
                hold = record.hold;
            }
            let state = if is_theirs { State::Theirs { inode: metadata.ino() } } else { State::Unsynced(self.boot) };
            Change::Put(BlobRecord { size, state, hold, media_type, provenance }, Some(checksums.into()))
        });
        if is_ours && let Some(record) = self.index.record(digest) {
            self.settle_hold(digest, record.hold);
        }
        if self.index.last_used(digest) == 0 {
            self.index.touch(digest);
        }
        drop(name);
        if !is_theirs {
            self.to_sync.push(digest);
        }
        debug!(%digest, size, "a blob of which that was not known is whole");
        Proof::Sound
    }

    /// Digest and checksums of a file; `None` when the store ends meanwhile.
    pub(super) fn hash(
        &self,
        file: &File,
        digest: &Digest,
        size: u64,
        hurry: Hurry,
    ) -> io::Result<Option<(Digest, Vec<u32>)>> {
        let mut hasher = digest.hasher();
        let mut checksums = Vec::new();
        let read = self.each_chunk(file, size, hurry, |chunk| {
            hasher.update(chunk);
            checksums.push(crc32fast::hash(chunk));
            true
        })?;
        Ok(read.map(|()| (hasher.finish(), checksums)))
    }

    /// Whether a file has these checksums, chunk by chunk; `None` when the store ends meanwhile.
    pub(super) fn has_checksums(
        &self,
        file: &File,
        checksums: &[u32],
        size: u64,
        hurry: Hurry,
    ) -> io::Result<Option<bool>> {
        let mut expected = checksums.iter();
        let mut is_alike = true;
        let read = self.each_chunk(file, size, hurry, |chunk| {
            is_alike = expected.next() == Some(&crc32fast::hash(chunk));
            is_alike
        })?;
        Ok(read.map(|()| is_alike && expected.next().is_none()))
    }

    /// Reads a file until it ends or `take` wants no more; `None` when the store ends meanwhile.
    fn each_chunk(
        &self,
        file: &File,
        size: u64,
        hurry: Hurry,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Option<()>> {
        let mut buffer = self.reading.buffers.take(CHUNK as usize);
        let mut at = 0;
        while at < size {
            if self.stop.is_set() {
                return Ok(None);
            }
            let (began, reads) = (Instant::now(), self.reading.count());
            // At most a chunk.
            let len = (size - at).min(CHUNK) as usize;
            let chunk = &mut buffer.as_mut()[..len];
            match read_chunk(file, chunk, at, hurry == Hurry::CanWait) {
                Ok(()) => {}
                // Cut while it was read; what there was is not the whole.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
            if !take(chunk) {
                break;
            }
            at += len as u64;
            if hurry == Hurry::CanWait && (self.is_receiving() || self.reading.count() != reads) {
                self.stop.wait(began.elapsed() * REST);
            }
        }
        Ok(Some(()))
    }
}
