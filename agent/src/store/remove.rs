use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use tracing::{debug, warn};

use super::CHUNK;
use super::aside::step_aside;
use super::bounds::Reason;
use super::events::Event;
use super::index::Change;
use super::layout::FileId;
use super::locks::held;
use super::record::Hold;
use super::shelves::Shelves;
use crate::image::Digest;

/// How many wrong blobs that can't be removed are remembered.
const MOST_SHUNNED: usize = 4096;

/// What taking a blob away came to.
enum Taken {
    /// So many bytes are free, or will be when the last reader leaves.
    Freed(u64),
    /// It wasn't there, or not any more.
    Nothing,
    /// It stays: it would have freed nothing.
    Stays,
}

/// What a blob is taken away for.
#[derive(Clone, Copy)]
enum Cause<'a> {
    /// It is damaged: the file that was read, where that is known. Another one under its name is not.
    Damage(Option<&'a File>),
    Room(Reason),
}

impl Shelves {
    /// Takes a damaged blob out of service at once; not one that has come into its place since `read` was opened. Blocks on
    /// the disk.
    pub(super) fn set_aside(&self, digest: &Digest, read: Option<&File>) {
        match self.take_away(digest, Cause::Damage(read)) {
            Ok(Taken::Stays) => return,
            Ok(Taken::Freed(_) | Taken::Nothing) => {
                warn!(%digest, "a damaged blob was set aside: it is fetched again when it is asked for");
            }
            Err(error) => {
                let mut shunned = held(&self.shunned);
                if shunned.len() < MOST_SHUNNED {
                    shunned.insert(*digest);
                }
                warn!(%digest, %error, "a damaged blob can't be removed: it is not served any more");
            }
        }
        self.show_totals();
        self.metrics.rotten.inc();
        self.index.tell(Event::Damaged(*digest));
    }

    /// Removes blobs; how many bytes that freed, and how many blobs went. Blocks on the disk.
    pub(super) fn drop_all(&self, digests: &[Digest], reason: Reason) -> (u64, u64) {
        let (mut bytes, mut blobs) = (0_u64, 0);
        for digest in digests {
            if self.stop.is_set() {
                break;
            }
            if self.index.is_backed_up() {
                // Otherwise nothing could be stored until what went is written.
                self.index.flush();
            }
            if let Some(freed) = self.drop_blob(digest, reason) {
                bytes = bytes.saturating_add(freed);
                blobs += 1;
            }
            step_aside();
        }
        self.show_totals();
        (bytes, blobs)
    }

    /// Removes a blob; the bytes freed, if it went.
    fn drop_blob(&self, digest: &Digest, reason: Reason) -> Option<u64> {
        match self.take_away(digest, Cause::Room(reason)) {
            Ok(Taken::Freed(bytes)) => {
                self.metrics.count_eviction(reason, bytes);
                self.space.freed();
                debug!(%digest, bytes, ?reason, "dropped");
                Some(bytes)
            }
            Ok(Taken::Nothing | Taken::Stays) => None,
            Err(error) => {
                warn!(%digest, %error, "can't drop a blob");
                None
            }
        }
    }

    /// Out of the index, out of sight, then off the disk: the name of a large file is held for a rename only, since to
    /// unlink it can take long.
    fn take_away(&self, digest: &Digest, cause: Cause<'_>) -> io::Result<Taken> {
        let path = self.layout.blob(digest);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let trash = self.layout.trash().join(format!("{}-{:x}-{number}", digest.hex(), self.run));
        let name = self.hold_name(digest);
        let there = path.symlink_metadata().ok();
        let record = self.index.record(digest);
        let hold = record.as_ref().map(|record| record.hold.clone());
        let is_shared = match (&there, &hold) {
            (Some(there), Some(Hold::Cloned)) => there.nlink() > 0,
            (Some(there), _) => there.nlink() > 1,
            (None, Some(Hold::InPlace(_))) => true,
            (None, _) => false,
        };
        match cause {
            Cause::Room(reason) if reason.is_for_space() && is_shared => {
                if let Some(hold) = hold {
                    self.settle_hold(digest, hold);
                }
                return Ok(Taken::Stays);
            }
            Cause::Damage(Some(read)) => {
                let at = match &hold {
                    Some(Hold::InPlace(theirs)) if there.is_none() => FileId::at(theirs).ok(),
                    _ => there.as_ref().map(FileId::of),
                };
                if at.is_some() && at != read.metadata().ok().as_ref().map(FileId::of) {
                    return Ok(Taken::Stays);
                }
            }
            Cause::Damage(None) | Cause::Room(_) => {}
        }
        self.open.forget(digest);
        self.index.update(digest, |_| Change::Drop);
        let size = record.map(|record| record.size).or_else(|| there.as_ref().map(std::fs::Metadata::len));
        let taken = Taken::Freed(if is_shared { 0 } else { size.unwrap_or(0) });
        let is_small = there.as_ref().is_some_and(|there| there.len() <= CHUNK);
        if is_small && self.disk.unlink(&path).is_ok() {
            return Ok(taken);
        }
        let moved = match self.disk.rename(&path, &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && there.is_some() => {
                // The trash is missing.
                self.layout.make(&*self.disk).and_then(|()| self.disk.rename(&path, &trash))
            }
            other => other,
        };
        drop(name);
        match moved {
            Ok(()) => {
                if let Err(error) = self.disk.unlink(&trash) {
                    warn!(path = %trash.display(), %error, "can't remove what was set aside; the next start tries again");
                }
                Ok(taken)
            }
            // What was left in place has no file of ours.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(if hold.is_some_and(|hold| matches!(hold, Hold::InPlace(_))) { taken } else { Taken::Nothing })
            }
            // Renaming needs room on some disks when they are full; unlinking doesn't.
            Err(_) => self.disk.unlink(&path).map(|()| taken),
        }
    }
}
