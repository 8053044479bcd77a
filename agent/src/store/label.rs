use std::fs::File;

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::disk::{Disk, LABEL};
use super::provenance::Provenance;
use super::record::{BlobRecord, seal, unseal};
use crate::image::MediaType;

/// The most that a label is read with, in bytes. Larger than any that is written.
const MOST: usize = 8 << 10;

/// What can't be told from a blob's bytes, kept with its file: it moves in by the same rename, and outlives the index.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Label {
    pub(super) media_type: Option<MediaType>,
    pub(super) provenance: Provenance,
}

impl Label {
    /// What a record says of it.
    pub(super) fn of(record: &BlobRecord) -> Self {
        Self { media_type: record.media_type.clone(), provenance: record.provenance.clone() }
    }

    /// Writes it, where the filesystem can hold it: where it can't, the index alone knows.
    pub(super) fn write(&self, disk: &dyn Disk, file: &File) {
        let Some(bytes) = seal(self) else { return };
        if let Err(error) = disk.set_label(file, &bytes) {
            debug!(%error, "a blob's label was not written");
        }
    }

    /// Reads it; an absent or damaged one says nothing.
    pub(super) fn read(file: &File) -> Self {
        let mut bytes = vec![0; MOST];
        match rustix::fs::fgetxattr(file, LABEL, &mut bytes[..]) {
            Ok(len) => bytes.get(..len).and_then(unseal).unwrap_or_default(),
            Err(_) => Self::default(),
        }
    }
}
