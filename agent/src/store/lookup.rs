use std::fs::File;
use std::sync::{Arc, RwLock};

use tracing::{debug, warn};

use super::blob::{Blob, Opened};
use super::chunks;
use super::index::{Change, Row};
use super::locks::held;
use super::shelves::Shelves;
use super::space::Standing;
use crate::image::Digest;

/// What the shelves have under a name.
pub(super) enum Found {
    /// To be read, chunk by chunk against its checksums.
    Whole(Blob),
    /// A file that nobody has proven yet.
    Suspect,
    Nothing,
}

impl Shelves {
    /// Looks for a blob. Blocks on the disk.
    pub(super) fn look(&self, digest: &Digest) -> Found {
        if self.space.standing() == Standing::Absent || held(&self.shunned).contains(digest) {
            return Found::Nothing;
        }
        let (file, size) = match self.layout.open_blob(digest) {
            Ok(Some((file, metadata))) => (file, metadata.len()),
            Ok(None) => {
                self.drop_ghost(digest);
                return Found::Nothing;
            }
            Err(error) => {
                warn!(%digest, %error, "can't open a blob");
                return Found::Nothing;
            }
        };
        match self.index.row(digest) {
            Some(row) if self.is_sound(&row, size) => {
                Found::Whole(self.open.share(self.opened(digest, file.into(), row)))
            }
            _ => Found::Suspect,
        }
    }

    fn is_sound(&self, row: &Row, size: u64) -> bool {
        row.record.size == size && row.record.state.is_trusted(self.boot) && row.checksums.len() as u64 == chunks(size)
    }

    pub(super) fn opened(&self, digest: &Digest, file: Arc<File>, row: Row) -> Opened {
        Opened {
            digest: *digest,
            size: row.record.size,
            media_type: row.record.media_type,
            provenance: RwLock::new(row.record.provenance),
            file,
            checksums: row.checksums,
            reading: self.reading.clone(),
        }
    }

    /// Drops the record of a blob whose file is gone.
    pub(super) fn drop_ghost(&self, digest: &Digest) {
        if self.index.record(digest).is_none() {
            return;
        }
        let _name = self.hold_name(digest);
        // Under its name's lock, so that a blob put there just now keeps its record.
        if matches!(self.layout.open_blob(digest), Ok(None)) {
            debug!(%digest, "a blob's file is gone");
            self.index.update(digest, |_| Change::Drop);
            self.open.forget(digest);
            self.show_totals();
        }
    }
}
