use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::index::Change;
use super::layout::FileId;
use super::locks::held;
use super::record::{BlobRecord, State};
use super::shelves::Shelves;
use crate::image::Digest;

/// How many blobs can wait. More stay unsynced until the next start: a power loss before means hashing them again.
const MOST_WAITING: usize = 4096;
/// How many are synced before their folder is, once for all of them.
const BATCH: usize = 32;

/// Blobs that are not yet known to be on the disk.
#[derive(Debug)]
pub(super) struct ToSync {
    waiting: Mutex<VecDeque<(Instant, Digest)>>,
    changed: Condvar,
    /// How long a blob rests first.
    after: Duration,
}

impl ToSync {
    pub(super) fn after(after: Duration) -> Self {
        Self { waiting: Mutex::default(), changed: Condvar::new(), after }
    }

    pub(super) fn push(&self, digest: &Digest) {
        let mut waiting = held(&self.waiting);
        if waiting.len() < MOST_WAITING {
            waiting.push_back((Instant::now(), *digest));
            self.changed.notify_all();
        }
    }

    pub(super) fn wake(&self) {
        // Taking the lock orders this after the check of who is about to wait.
        drop(held(&self.waiting));
        self.changed.notify_all();
    }
}

impl Shelves {
    /// Brings blobs to the disk, in the order of their arrival, until the store ends.
    pub(super) fn sync_until_stopped(&self) {
        loop {
            let batch: Vec<Digest> = {
                let ToSync { waiting, changed, after } = &self.to_sync;
                let mut waiting = held(waiting);
                loop {
                    let rests = waiting.front().map(|(since, _)| after.saturating_sub(since.elapsed()));
                    waiting = match rests {
                        _ if self.stop.is_set() => return,
                        Some(Duration::ZERO) => break,
                        Some(rests) => changed.wait_timeout(waiting, rests).unwrap_or_else(PoisonError::into_inner).0,
                        None => changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                    };
                }
                let rested = waiting.iter().take(BATCH).take_while(|(since, _)| since.elapsed() >= *after).count();
                waiting.drain(..rested).map(|(_, digest)| digest).collect()
            };
            self.sync(&batch);
        }
    }

    fn sync(&self, batch: &[Digest]) {
        let mut synced: HashMap<&str, Vec<(Digest, FileId)>> = HashMap::new();
        for digest in batch {
            if self.stop.is_set() {
                return;
            }
            match self.sync_file(digest) {
                Ok(Some(file)) => synced.entry(digest.algorithm()).or_default().push((*digest, file)),
                Ok(None) => debug!(%digest, "gone, or containerd's, before it was synced"),
                Err(error) => {
                    // What the kernel could not write it has forgotten: the file may be anything by now.
                    warn!(%digest, %error, "a blob could not be brought to the disk");
                    self.space.note(&error);
                    self.set_aside(digest, None);
                }
            }
        }
        for (algorithm, files) in synced {
            if let Err(error) = self.disk.sync_dir(&self.layout.blobs(algorithm)) {
                warn!(algorithm, %error, "the names of blobs could not be brought to the disk");
                continue;
            }
            for (digest, file) in files {
                self.mark_synced(&digest, file);
            }
        }
    }

    fn sync_file(&self, digest: &Digest) -> io::Result<Option<FileId>> {
        let Some((file, metadata)) = self.layout.open_blob(digest)? else { return Ok(None) };
        if metadata.nlink() > 1 {
            // It gave way to containerd's, which is synced.
            return Ok(None);
        }
        self.disk.sync(&file)?;
        Ok(Some(FileId::of(&metadata)))
    }

    fn mark_synced(&self, digest: &Digest, file: FileId) {
        let _name = self.hold_name(digest);
        // Another file may have come under the name since.
        if FileId::at(&self.layout.blob(digest)).is_ok_and(|there| there == file) {
            self.index.update(digest, |known| match known {
                Some(record) if record.state == State::Unsynced(self.boot) => {
                    Change::Put(BlobRecord { state: State::Synced, ..record }, None)
                }
                _ => Change::Keep,
            });
        }
    }
}
