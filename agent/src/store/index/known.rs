//! What is known besides blobs: tags, who may have what, and the records of others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batch::Batch;
use super::{Index, MOST_PENDING, tables};
use crate::image::{Registry, Repository, Tag};
use crate::store::locks::held;
use crate::store::record::{Openness, TagRecord};
use crate::store::records::Records;

impl Index {
    /// The last answer about a tag.
    pub(in crate::store) fn tag(&self, registry: &Registry, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        let key = tables::tag_key(registry, repository, tag);
        let queue = held(&self.shared.queue);
        let pending = queue.layers().find_map(|batch| batch.tags.get(&key).cloned());
        pending.or_else(|| self.shared.home.read(|database| tables::tag(database, &key)).flatten())
    }

    /// Notes an answer about a tag. One that is new is written at once: after a crash, nobody is to be given an older
    /// one.
    pub(in crate::store) fn record_tag(
        &self,
        registry: &Registry,
        repository: &Repository,
        tag: &Tag,
        record: TagRecord,
    ) {
        let is_new = self.tag(registry, repository, tag).is_none_or(|known| known.digest != record.digest);
        let mut queue = held(&self.shared.queue);
        if queue.pending.tags.len() >= MOST_PENDING {
            return;
        }
        let was_idle = queue.pending.has_only_uses();
        queue.pending.tags.insert(tables::tag_key(registry, repository, tag), record);
        queue.urgent |= is_new;
        self.shared.taken_in(queue, was_idle);
    }

    /// Whether a repository opens to anybody, as far as is known.
    pub(in crate::store) fn openness(&self, registry: &Registry, repository: &Repository) -> Option<Openness> {
        let key = tables::place_key(registry, repository);
        let queue = held(&self.shared.queue);
        let pending = queue.layers().find_map(|batch| batch.openness.get(&key).copied());
        pending.or_else(|| self.shared.home.read(|database| tables::openness(database, &key)).flatten())
    }

    /// Notes whether a repository opens to anybody.
    pub(in crate::store) fn note_openness(&self, registry: &Registry, repository: &Repository, openness: Openness) {
        self.take_in(|pending| {
            if pending.openness.len() < MOST_PENDING {
                pending.openness.insert(tables::place_key(registry, repository), openness);
            }
        });
    }

    /// When what has this hash last held, in seconds since 1970.
    pub(in crate::store) fn remembered(&self, hash: &[u8; 32]) -> Option<u64> {
        let queue = held(&self.shared.queue);
        for batch in queue.layers() {
            if let Some(at) = batch.remembered.get(hash) {
                return *at;
            }
        }
        let known = self.shared.home.read(|database| tables::remembered(database, hash)).flatten()?;
        queue.layers().all(|batch| batch.forget_before <= known).then_some(known)
    }

    /// Remembers when what has this hash last held, or, for `None`, forgets it.
    pub(in crate::store) fn remember(&self, hash: [u8; 32], at: Option<u64>) {
        self.take_in(|pending| {
            // To forget is never put off.
            if at.is_none() || pending.remembered.len() < MOST_PENDING {
                pending.remembered.insert(hash, at);
            }
        });
    }

    /// Forgets what last held before that.
    pub(in crate::store) fn forget_before(&self, before: u64) {
        self.take_in(|pending| pending.forget_before = pending.forget_before.max(before));
    }

    fn take_in(&self, change: impl FnOnce(&mut Batch)) {
        let mut queue = held(&self.shared.queue);
        let was_idle = queue.pending.has_only_uses();
        change(&mut queue.pending);
        self.shared.taken_in(queue, was_idle);
    }

    /// Somebody's records of one kind, as they were given.
    pub(in crate::store) fn records(&self, of: Records) -> Vec<(String, Vec<u8>)> {
        let queue = held(&self.shared.queue);
        let written = self.shared.home.read(|database| tables::records(database, of)).unwrap_or_default();
        let mut records: BTreeMap<String, Vec<u8>> = written.into_iter().collect();
        let mut layers: Vec<_> = queue.layers().collect();
        layers.reverse();
        let pending = layers.into_iter().flat_map(|batch| &batch.records);
        for ((_, name), value) in pending.filter(|((kind, _), _)| *kind == of) {
            match value {
                Some(value) => drop(records.insert(name.clone(), value.to_vec())),
                None => drop(records.remove(name)),
            }
        }
        records.into_iter().collect()
    }

    /// Keeps a record, or removes it. False when there are `most` others already.
    pub(in crate::store) fn record_as(&self, of: Records, name: &str, value: Option<Arc<[u8]>>, most: usize) -> bool {
        let mut queue = held(&self.shared.queue);
        if value.is_some() {
            let written = self.shared.home.read(|database| tables::count_records(database, of, name));
            let (count, is_known) = written.unwrap_or_default();
            let key = (of, name.to_owned());
            let is_pending = queue.layers().any(|batch| batch.records.contains_key(&key));
            // What waits may be of another kind, or known already: the bound is reached a little early then.
            let added: usize = queue.layers().map(|batch| batch.records.len()).sum();
            if !is_known && !is_pending && usize::try_from(count).unwrap_or(usize::MAX).saturating_add(added) >= most {
                return false;
            }
        }
        let was_idle = queue.pending.has_only_uses();
        queue.pending.records.insert((of, name.to_owned()), value);
        self.shared.taken_in(queue, was_idle);
        true
    }
}
