//! Walks over all blobs. They wait for no write, and hold no lock while they read.

use std::collections::BTreeMap;

use super::batch::RowChange;
use super::{Entry, Index, tables};
use crate::image::Digest;
use crate::store::locks::held;
use crate::store::record::BlobRecord;

impl Index {
    /// Blobs in the order of their digests, the first `limit` after `after`; none only at the end. Waits for no write,
    /// and holds no lock while it reads.
    pub(in crate::store) fn scan(&self, after: Option<&Digest>, limit: usize) -> Vec<Entry> {
        let mut after = after.copied();
        loop {
            let changes: Vec<(Digest, Option<BlobRecord>)> = {
                let queue = held(&self.shared.queue);
                let mut layers: Vec<_> = queue.layers().collect();
                layers.reverse();
                let changes = layers.into_iter().flat_map(|batch| &batch.blobs);
                let beyond = changes.filter(|(digest, _)| after.is_none_or(|after| **digest > after));
                let record = |change: &RowChange| match change {
                    RowChange::Put(record, _) => Some(record.clone()),
                    RowChange::Drop => None,
                };
                beyond.map(|(digest, change)| (*digest, record(change))).collect()
            };
            let read = self.shared.home.read(|database| tables::scan(database, after.as_ref(), limit));
            let written = read.unwrap_or_default();
            let last = written.last().filter(|_| written.len() >= limit).map(|entry| entry.digest);
            let mut entries: BTreeMap<Digest, Entry> = written.into_iter().map(|entry| (entry.digest, entry)).collect();
            for (digest, record) in changes {
                match record {
                    _ if last.is_some_and(|last| digest > last) => {}
                    Some(record) => {
                        // When it was used is written apart from what else is known of it.
                        let used = entries.get(&digest).map_or(0, |entry| entry.used);
                        entries.insert(digest, Entry { digest, record, used });
                    }
                    None => drop(entries.remove(&digest)),
                }
            }
            let mut entries: Vec<Entry> = entries.into_values().take(limit).collect();
            match last {
                // All of them were dropped just now.
                Some(last) if entries.is_empty() => after = Some(last),
                _ => {
                    self.note_uses(&mut entries);
                    return entries;
                }
            }
        }
    }

    /// Enters the uses that are not written yet.
    fn note_uses(&self, entries: &mut [Entry]) {
        let queue = held(&self.shared.queue);
        let touched = held(&self.shared.touched);
        for entry in entries {
            let newer = touched.get(&entry.digest);
            let newer = newer.or_else(|| queue.layers().find_map(|batch| batch.used.get(&entry.digest)));
            entry.used = newer.copied().unwrap_or(entry.used);
        }
    }
}
