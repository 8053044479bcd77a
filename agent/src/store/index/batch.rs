use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::image::{Digest, Registry, Repository};
use crate::store::record::{BlobRecord, Openness, TagRecord};
use crate::store::records::Records;

/// Changes that go to the disk together; the last change of a thing is the one that counts.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) blobs: HashMap<Digest, RowChange>,
    pub(super) used: HashMap<Digest, u64>,
    pub(super) repositories: HashMap<Digest, HashSet<(Registry, Repository)>>,
    pub(super) tags: HashMap<Vec<u8>, TagRecord>,
    pub(super) openness: HashMap<Vec<u8>, Openness>,
    /// `None` forgets.
    pub(super) remembered: HashMap<[u8; 32], Option<u64>>,
    /// Everything older is forgotten.
    pub(super) forget_before: u64,
    /// By kind and name; `None` removes.
    pub(super) records: HashMap<(Records, String), Option<Arc<[u8]>>>,
}

#[derive(Debug, Clone)]
pub(super) enum RowChange {
    /// Without checksums, those that are in the database stay.
    Put(BlobRecord, Option<Arc<[u32]>>),
    Drop,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.has_only_uses() && self.used.is_empty()
    }

    /// Whether there is nothing in it that can't wait a little.
    pub(super) fn has_only_uses(&self) -> bool {
        self.blobs.is_empty()
            && self.repositories.is_empty()
            && self.tags.is_empty()
            && self.openness.is_empty()
            && self.remembered.is_empty()
            && self.forget_before == 0
            && self.records.is_empty()
    }

    pub(super) fn put(&mut self, digest: &Digest, record: BlobRecord, checksums: Option<Arc<[u32]>>) {
        let kept = match (checksums, self.blobs.remove(digest)) {
            (None, Some(RowChange::Put(_, earlier))) => earlier,
            (new, _) => new,
        };
        self.blobs.insert(*digest, RowChange::Put(record, kept));
    }

    pub(super) fn drop_blob(&mut self, digest: &Digest) {
        self.blobs.insert(*digest, RowChange::Drop);
        self.used.remove(digest);
        self.repositories.remove(digest);
    }

    /// Takes back a batch that couldn't be written, behind what came since.
    pub(super) fn put_under(&mut self, older: &Self) {
        for (digest, change) in &older.blobs {
            match (self.blobs.get_mut(digest), change) {
                (None, _) => drop(self.blobs.insert(*digest, change.clone())),
                (Some(RowChange::Put(_, checksums @ None)), RowChange::Put(_, earlier)) => {
                    checksums.clone_from(earlier);
                }
                (Some(_), _) => {}
            }
        }
        let dropped = |digest: &Digest| matches!(self.blobs.get(digest), Some(RowChange::Drop));
        for (digest, used) in older.used.iter().filter(|(digest, _)| !dropped(digest)) {
            self.used.entry(*digest).or_insert(*used);
        }
        for (digest, of) in older.repositories.iter().filter(|(digest, _)| !dropped(digest)) {
            self.repositories.entry(*digest).or_default().extend(of.iter().cloned());
        }
        for (key, tag) in &older.tags {
            self.tags.entry(key.clone()).or_insert_with(|| tag.clone());
        }
        for (key, openness) in &older.openness {
            self.openness.entry(key.clone()).or_insert(*openness);
        }
        for (hash, at) in &older.remembered {
            self.remembered.entry(*hash).or_insert(*at);
        }
        self.forget_before = self.forget_before.max(older.forget_before);
        for (key, value) in &older.records {
            self.records.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}
