use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::buffers::Buffers;
use super::hands::Hands;
use super::locks::held;
use super::provenance::Provenance;
use super::reader::BlobReader;
use crate::image::{Digest, MediaType};

/// A blob that is held whole, open for reading. A cheap clone.
///
/// It stays readable to its end whatever becomes of its file's name: evicted, set aside or deleted by somebody.
#[derive(Debug, Clone)]
pub struct Blob {
    pub(super) opened: Arc<Opened>,
}

#[derive(Debug)]
pub(super) struct Opened {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) media_type: Option<MediaType>,
    pub(super) provenance: RwLock<Provenance>,
    pub(super) file: Arc<File>,
    pub(super) checksums: Arc<[u32]>,
    /// The file is containerd's own.
    pub(super) is_in_place: bool,
    pub(super) reading: Reading,
}

/// What readers share.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) buffers: Arc<Buffers>,
    pub(super) hands: Hands,
    /// Chunks served.
    pub(super) reads: Arc<AtomicU64>,
}

impl Blob {
    /// Its name.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.opened.digest
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.opened.size
    }

    /// What its registry called it, if it said.
    #[must_use]
    pub fn media_type(&self) -> Option<&MediaType> {
        self.opened.media_type.as_ref()
    }

    /// Where it came from, as far as is known now; see [`Provenance::may_be_given_for`].
    #[must_use]
    pub fn provenance(&self) -> Provenance {
        self.opened.provenance.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the bytes of `range`, which is cut to the blob's size.
    #[must_use]
    pub fn reader(&self, range: Range<u64>) -> BlobReader {
        BlobReader::new(Arc::clone(&self.opened), range)
    }
}

/// The blobs that are open, so that all who read one share its file and checksums.
#[derive(Debug, Default)]
pub(super) struct OpenBlobs {
    open: Mutex<HashMap<Digest, Weak<Opened>>>,
}

impl OpenBlobs {
    pub(super) fn find(&self, digest: &Digest) -> Option<Blob> {
        let opened = held(&self.open).get(digest)?.upgrade()?;
        Some(Blob { opened })
    }

    /// Shares a blob that was found, or the one that somebody else has open already.
    pub(super) fn share(&self, opened: Opened) -> Blob {
        match self.find(&opened.digest) {
            Some(blob) => blob,
            None => self.replace(opened),
        }
    }

    /// Shares a blob that was just stored, from now on.
    pub(super) fn replace(&self, opened: Opened) -> Blob {
        let opened = Arc::new(opened);
        let mut open = held(&self.open);
        if open.len() == open.capacity() {
            // Instead of growing; what is still there afterwards is open.
            open.retain(|_, opened| opened.strong_count() > 0);
        }
        open.insert(opened.digest, Arc::downgrade(&opened));
        Blob { opened }
    }

    /// Out of service: who has it open goes on, nobody else gets it from here.
    pub(super) fn forget(&self, digest: &Digest) {
        held(&self.open).remove(digest);
    }

    /// The same, unless another file is open under that name by now.
    pub(super) fn forget_file(&self, digest: &Digest, file: &Arc<File>) {
        let mut open = held(&self.open);
        if open.get(digest).and_then(Weak::upgrade).is_some_and(|opened| Arc::ptr_eq(&opened.file, file)) {
            open.remove(digest);
        }
    }

    pub(super) fn is_open(&self, digest: &Digest) -> bool {
        held(&self.open).get(digest).is_some_and(|opened| opened.strong_count() > 0)
    }
}
