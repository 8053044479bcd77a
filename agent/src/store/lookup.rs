use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use tracing::{debug, warn};

use super::blob::{Blob, Opened};
use super::chunks;
use super::index::{Change, Row};
use super::layout::open_regular;
use super::locks::held;
use super::record::Hold;
use super::shelves::Shelves;
use super::space::Standing;
use crate::image::Digest;

/// What the shelves have under a name.
pub(super) enum Sight {
    /// To be read, chunk by chunk against its checksums.
    Whole(Blob),
    /// A file that nobody has proven yet.
    Suspect,
    Nothing,
}

/// A blob's file: ours, or the one that was left where containerd has it.
#[derive(Debug)]
pub(super) struct Lying {
    pub(super) file: File,
    pub(super) metadata: Metadata,
    pub(super) path: PathBuf,
    /// Whether it lies in the store's folder.
    pub(super) is_ours: bool,
}

impl Shelves {
    /// Opens a blob's file, wherever it lies.
    pub(super) fn find_file(&self, digest: &Digest) -> io::Result<Option<Lying>> {
        if let Some((file, metadata)) = self.layout.open_blob(digest)? {
            return Ok(Some(Lying { file, metadata, path: self.layout.blob(digest), is_ours: true }));
        }
        match self.index.record(digest).map(|record| record.hold) {
            Some(Hold::InPlace(path)) => {
                let opened = open_regular(&path)?;
                Ok(opened.map(|(file, metadata)| Lying { file, metadata, path, is_ours: false }))
            }
            _ => Ok(None),
        }
    }

    /// Looks for a blob. Blocks on the disk.
    pub(super) fn look(&self, digest: &Digest) -> Sight {
        if self.space.standing() == Standing::Absent || held(&self.shunned).contains(digest) {
            return Sight::Nothing;
        }
        let Lying { file, metadata, .. } = match self.find_file(digest) {
            Ok(Some(lying)) => lying,
            Ok(None) => {
                self.drop_ghost(digest);
                return Sight::Nothing;
            }
            Err(error) => {
                warn!(%digest, %error, "can't open a blob");
                return Sight::Nothing;
            }
        };
        match self.index.row(digest) {
            Some(row) if self.is_sound(&row, &metadata) => {
                Sight::Whole(self.open.share(self.opened(digest, file.into(), row)))
            }
            _ => Sight::Suspect,
        }
    }

    /// Whether a file may be served by what its row says.
    pub(super) fn is_sound(&self, row: &Row, file: &Metadata) -> bool {
        row.record.size == file.len()
            && row.record.state.is_trusted(self.boot, file.ino())
            && row.checksums.len() as u64 == chunks(file.len())
    }

    pub(super) fn opened(&self, digest: &Digest, file: Arc<File>, row: Row) -> Opened {
        Opened {
            digest: *digest,
            size: row.record.size,
            media_type: row.record.media_type,
            provenance: RwLock::new(row.record.provenance),
            file,
            checksums: row.checksums,
            is_in_place: matches!(row.record.hold, Hold::InPlace(_)),
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
        if matches!(self.find_file(digest), Ok(None)) {
            debug!(%digest, "a blob's file is gone");
            self.index.update(digest, |_| Change::Drop);
            self.open.forget(digest);
            self.show_totals();
        }
    }
}
