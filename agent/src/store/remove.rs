use std::io;
use std::sync::atomic::Ordering;

use tracing::{debug, warn};

use super::bounds::Reason;
use super::index::Change;
use super::locks::held;
use super::shelves::Shelves;
use crate::image::Digest;

/// How many wrong blobs that can't be removed are remembered.
const MOST_SHUNNED: usize = 4096;

impl Shelves {
    /// Takes a damaged blob out of service at once. Blocks on the disk.
    pub(super) fn set_aside(&self, digest: &Digest) {
        self.metrics.rotten.inc();
        match self.take_away(digest) {
            Ok(_) => warn!(%digest, "a damaged blob was set aside: it is fetched again when it is asked for"),
            Err(error) => {
                let mut shunned = held(&self.shunned);
                if shunned.len() < MOST_SHUNNED {
                    shunned.insert(*digest);
                }
                warn!(%digest, %error, "a damaged blob can't be removed: it is not served any more");
            }
        }
    }

    /// Removes a blob for room; its size, if it was there. Blocks on the disk.
    pub(super) fn evict(&self, digest: &Digest, reason: Reason) -> Option<u64> {
        match self.take_away(digest) {
            Ok(Some(size)) => {
                self.metrics.count_eviction(reason, size);
                self.space.freed();
                debug!(%digest, size, ?reason, "evicted");
                Some(size)
            }
            Ok(None) => None,
            Err(error) => {
                warn!(%digest, %error, "can't evict a blob");
                None
            }
        }
    }

    /// Out of the index, out of sight, then off the disk: the name is held for the rename only, since unlinking a
    /// large file can take long.
    fn take_away(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let path = self.layout.blob(digest);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let trash = self.layout.trash().join(format!("{}-{:x}-{number}", digest.hex(), self.run));
        let name = self.hold_name(digest);
        self.open.forget(digest);
        let mut size = None;
        self.index.update(digest, |known| {
            size = known.map(|record| record.size);
            Change::Drop
        });
        let size = size.or_else(|| path.symlink_metadata().ok().map(|metadata| metadata.len()));
        let moved = match self.disk.rename(&path, &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_ok() => {
                // The trash is missing.
                self.layout.make(&*self.disk).and_then(|()| self.disk.rename(&path, &trash))
            }
            other => other,
        };
        drop(name);
        self.show_totals();
        match moved {
            Ok(()) => {
                if let Err(error) = self.disk.unlink(&trash) {
                    warn!(path = %trash.display(), %error, "can't remove what was set aside; the next start tries again");
                }
                Ok(size)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Renaming needs room on some disks when they are full; unlinking doesn't.
            Err(_) => self.disk.unlink(&path).map(|()| size),
        }
    }
}
