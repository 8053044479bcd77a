//! What is known of each blob, and of tags: one redb file, and in front of it what is not yet written to it.
//!
//! Changes go into a batch in memory, where every reader sees them at once; a thread writes batches, about one a
//! second. Losing the last second is safe, since `blobs/` is the truth and what it holds without a record is hashed
//! before use. Losing the file is safe for the same reason. Where the file can't be written, the batch stays in memory,
//! within a bound; where there is no file, the database is in memory altogether.

mod batch;
mod database;
mod file;
mod tables;
mod writer;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::batch::{Batch, RowChange};
use self::database::Home;
use super::boot::unix_now;
use super::disk::Disk;
use super::events::{Event, Events, Teller};
use super::locks::held;
use super::metrics::Metrics;
use super::record::{BlobRecord, Hold, Openness, TagRecord};
use super::records::Records;
use super::space::Space;
use crate::image::{Digest, Registry, Repository, Tag};

/// How many blobs may have changes that are not written. Beyond, nothing new is stored until the index takes it.
const MOST_PENDING: usize = 8192;
/// How many uses may wait to be written; more are forgotten, which only makes eviction a little less exact.
const MOST_TOUCHED: usize = 65_536;
/// How long a flush may take.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// The index. A cheap clone.
#[derive(Debug, Clone)]
pub(super) struct Index {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    home: Home,
    queue: Mutex<Queue>,
    /// Apart from the queue: a use is noted on the runtime's threads, and must never wait for a disk.
    touched: Mutex<HashMap<Digest, u64>>,
    changed: Condvar,
    metrics: Metrics,
    space: Arc<Space>,
    teller: Teller,
}

/// What the writer has yet to write. Locked for updates that may read the disk: taken on blocking threads only.
#[derive(Debug, Default)]
struct Queue {
    pending: Batch,
    writing: Option<Arc<Batch>>,
    /// Changes so far, and how many of them are written: what a flush waits for.
    taken_in: u64,
    written: u64,
    /// Writes that failed so far.
    failures: u64,
    urgent: bool,
    stopped: bool,
    totals: Totals,
    /// Counts changes of the totals.
    generation: u64,
}

/// What the index knows of a blob.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) record: BlobRecord,
    /// A CRC-32 for each chunk.
    pub(super) checksums: Arc<[u32]>,
}

/// What becomes of a blob's record.
#[derive(Debug)]
pub(super) enum Change {
    Keep,
    /// A new record; without checksums, those that are there stay.
    Put(BlobRecord, Option<Arc<[u32]>>),
    Drop,
}

/// Blobs in the index, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) blobs: u64,
    /// Of those that dropping would free.
    pub(super) bytes: u64,
    /// Of those that containerd has too.
    pub(super) shared_bytes: u64,
}

/// One blob of a scan.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) record: BlobRecord,
    /// In milliseconds since 1970; 0 for never.
    pub(super) used: u64,
}

impl Index {
    /// Opens the file at `path`, sets it aside and begins anew where it can't be read; or works in memory for `None`.
    pub(super) fn open(disk: Arc<dyn Disk>, path: Option<PathBuf>, space: Arc<Space>, metrics: Metrics) -> Self {
        let home = Home::open(disk, path);
        let totals = home.read(tables::totals).unwrap_or_default();
        let queue = Mutex::new(Queue { totals, ..Queue::default() });
        let changed = Condvar::new();
        Self {
            shared: Arc::new(Shared {
                home,
                queue,
                touched: Mutex::default(),
                changed,
                metrics,
                space,
                teller: Teller::default(),
            }),
        }
    }

    /// What becomes of blobs from now on.
    pub(super) fn events(&self) -> Events {
        self.shared.teller.events()
    }

    /// Takes over the tags of an index file that can only be read.
    pub(super) fn adopt_tags(&self, path: &std::path::Path) {
        let tags = file::read_only_tags(path);
        let mut queue = held(&self.shared.queue);
        queue.pending.tags.extend(tags);
        queue.taken_in += 1;
    }

    /// Writes batches until [`Index::stop`]. For a thread of its own.
    pub(super) fn write_until_stopped(&self) {
        writer::run(&self.shared);
    }

    /// Ends the writer, after a last batch.
    pub(super) fn stop(&self) {
        held(&self.shared.queue).stopped = true;
        self.shared.changed.notify_all();
    }

    /// The index was read from end to end and holds together.
    pub(super) fn passed_trial(&self) {
        self.shared.home.passed_trial();
    }

    /// A blob's record.
    pub(super) fn record(&self, digest: &Digest) -> Option<BlobRecord> {
        let queue = held(&self.shared.queue);
        self.shared.record(&queue, digest)
    }

    /// A blob's record and checksums; `None` unless it has both.
    pub(super) fn row(&self, digest: &Digest) -> Option<Row> {
        let queue = held(&self.shared.queue);
        let record = self.shared.record(&queue, digest)?;
        let pending = queue.layers().find_map(|batch| match batch.blobs.get(digest) {
            Some(RowChange::Put(_, Some(checksums))) => Some(Arc::clone(checksums)),
            _ => None,
        });
        let checksums = match pending {
            Some(checksums) => checksums,
            None => self.shared.home.read(|database| tables::checksums(database, digest)).flatten()?,
        };
        Some(Row { record, checksums })
    }

    /// Changes a blob's record, with nobody else changing it meanwhile.
    pub(super) fn update(&self, digest: &Digest, change: impl FnOnce(Option<BlobRecord>) -> Change) {
        let mut queue = held(&self.shared.queue);
        let old = self.shared.record(&queue, digest);
        let old_counted = old.as_ref().map(Totals::of);
        let new_counted = match change(old) {
            Change::Keep => return,
            Change::Put(record, checksums) => {
                let counted = Totals::of(&record);
                self.shared.teller.tell(|| Event::Kept(*digest, record.provenance.clone()));
                queue.pending.put(digest, record, checksums);
                Some(counted)
            }
            Change::Drop => {
                if old_counted.is_none() && self.shared.home.read(|db| tables::has_blob(db, digest)) == Some(false) {
                    return;
                }
                queue.pending.drop_blob(digest);
                self.shared.teller.tell(|| Event::Gone(*digest));
                None
            }
        };
        queue.count(old_counted, new_counted);
        queue.taken_in += 1;
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Makes sure that no power loss can bring back an older record of this blob, which may call something synced that
    /// the file about to come under its name is not. Costs a durable write, and only where there is such a record.
    pub(super) fn forget_durably(&self, digest: &Digest) {
        if self.shared.home.read(|database| tables::has_blob(database, digest)) == Some(true) {
            self.update(digest, |_| Change::Drop);
            self.flush();
        }
    }

    /// Tells those who watch.
    pub(super) fn tell(&self, event: Event) {
        self.shared.teller.tell(|| event);
    }

    /// Notes that a blob was used now. Never blocks on the disk.
    pub(super) fn touch(&self, digest: &Digest) {
        let mut touched = held(&self.shared.touched);
        if touched.len() < MOST_TOUCHED || touched.contains_key(digest) {
            touched.insert(*digest, unix_now());
        }
    }

    /// When a blob was used last, in milliseconds since 1970; 0 for never.
    pub(super) fn last_used(&self, digest: &Digest) -> u64 {
        if let Some(used) = held(&self.shared.touched).get(digest) {
            return *used;
        }
        let queue = held(&self.shared.queue);
        let pending = queue.layers().find_map(|batch| batch.used.get(digest).copied());
        pending.or_else(|| self.shared.home.read(|database| tables::used(database, digest)).flatten()).unwrap_or(0)
    }

    /// When each was used last, in milliseconds since 1970; 0 for never.
    pub(super) fn last_used_of(&self, digests: &[Digest]) -> Vec<u64> {
        let written = self.shared.home.read(|database| tables::used_of(database, digests));
        let mut times = written.unwrap_or_else(|| vec![0; digests.len()]);
        let queue = held(&self.shared.queue);
        let touched = held(&self.shared.touched);
        for (digest, time) in digests.iter().zip(&mut times) {
            let newer = touched.get(digest).or_else(|| queue.layers().find_map(|batch| batch.used.get(digest)));
            *time = newer.copied().unwrap_or(*time);
        }
        times
    }

    /// The record of each, where there is one.
    pub(super) fn records_of(&self, digests: &[Digest]) -> Vec<Option<BlobRecord>> {
        // Before the database is read: what is written meanwhile is in one of them at least.
        let pending: Vec<Option<Option<BlobRecord>>> = {
            let queue = held(&self.shared.queue);
            let change = |digest| match queue.layers().find_map(|batch| batch.blobs.get(digest))? {
                RowChange::Put(record, _) => Some(Some(record.clone())),
                RowChange::Drop => Some(None),
            };
            digests.iter().map(change).collect()
        };
        let written = self.shared.home.read(|database| tables::records_of(database, digests));
        let written = written.unwrap_or_else(|| vec![None; digests.len()]);
        pending.into_iter().zip(written).map(|(pending, written)| pending.unwrap_or(written)).collect()
    }

    /// Sets when a blob was used last, for one that was found: in milliseconds since 1970.
    pub(super) fn set_used(&self, digest: &Digest, used: u64) {
        let mut queue = held(&self.shared.queue);
        queue.pending.used.insert(*digest, used);
        queue.taken_in += 1;
    }

    /// Notes that a repository has a blob.
    pub(super) fn add_repository(&self, digest: &Digest, registry: &Registry, repository: &Repository) {
        let known = self.shared.home.read(|database| tables::has_repository(database, digest, registry, repository));
        if known == Some(true) {
            return;
        }
        let mut queue = held(&self.shared.queue);
        queue.pending.repositories.entry(*digest).or_default().insert((registry.clone(), repository.clone()));
        queue.taken_in += 1;
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// The repositories that are known to have a blob.
    pub(super) fn repositories(&self, digest: &Digest) -> Vec<(Registry, Repository)> {
        let queue = held(&self.shared.queue);
        let mut known = self.shared.home.read(|database| tables::repositories(database, digest)).unwrap_or_default();
        known.extend(queue.layers().filter_map(|batch| batch.repositories.get(digest)).flatten().cloned());
        known.sort_unstable();
        known.dedup();
        known
    }

    /// The last answer about a tag.
    pub(super) fn tag(&self, registry: &Registry, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        let key = tables::tag_key(registry, repository, tag);
        let queue = held(&self.shared.queue);
        let pending = queue.layers().find_map(|batch| batch.tags.get(&key).cloned());
        pending.or_else(|| self.shared.home.read(|database| tables::tag(database, &key)).flatten())
    }

    /// Notes an answer about a tag. One that is new is written at once: after a crash, nobody is to be given an older
    /// one.
    pub(super) fn record_tag(&self, registry: &Registry, repository: &Repository, tag: &Tag, record: TagRecord) {
        let is_new = self.tag(registry, repository, tag).is_none_or(|known| known.digest != record.digest);
        let mut queue = held(&self.shared.queue);
        if queue.pending.tags.len() >= MOST_PENDING {
            return;
        }
        queue.pending.tags.insert(tables::tag_key(registry, repository, tag), record);
        queue.taken_in += 1;
        queue.urgent |= is_new;
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Whether a repository opens to anybody, as far as is known.
    pub(super) fn openness(&self, registry: &Registry, repository: &Repository) -> Option<Openness> {
        let key = tables::place_key(registry, repository);
        let queue = held(&self.shared.queue);
        let pending = queue.layers().find_map(|batch| batch.openness.get(&key).copied());
        pending.or_else(|| self.shared.home.read(|database| tables::openness(database, &key)).flatten())
    }

    /// Notes whether a repository opens to anybody.
    pub(super) fn note_openness(&self, registry: &Registry, repository: &Repository, openness: Openness) {
        self.take_in(|pending| {
            if pending.openness.len() < MOST_PENDING {
                pending.openness.insert(tables::place_key(registry, repository), openness);
            }
        });
    }

    /// When what has this hash last held, in seconds since 1970.
    pub(super) fn remembered(&self, hash: &[u8; 32]) -> Option<u64> {
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
    pub(super) fn remember(&self, hash: [u8; 32], at: Option<u64>) {
        self.take_in(|pending| {
            // To forget is never put off.
            if at.is_none() || pending.remembered.len() < MOST_PENDING {
                pending.remembered.insert(hash, at);
            }
        });
    }

    /// Forgets what last held before that.
    pub(super) fn forget_before(&self, before: u64) {
        self.take_in(|pending| pending.forget_before = pending.forget_before.max(before));
    }

    fn take_in(&self, change: impl FnOnce(&mut Batch)) {
        let mut queue = held(&self.shared.queue);
        change(&mut queue.pending);
        queue.taken_in += 1;
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Somebody's records of one kind, as they were given.
    pub(super) fn records(&self, of: Records) -> Vec<(String, Vec<u8>)> {
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
    pub(super) fn record_as(&self, of: Records, name: &str, value: Option<Arc<[u8]>>, most: usize) -> bool {
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
        queue.pending.records.insert((of, name.to_owned()), value);
        queue.taken_in += 1;
        drop(queue);
        self.shared.changed.notify_all();
        true
    }

    /// Blobs in the order of their digests, the first `limit` after `after`; none only at the end. Waits for no write,
    /// and holds no lock while it reads.
    pub(super) fn scan(&self, after: Option<&Digest>, limit: usize) -> Vec<Entry> {
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

    /// The `limit` blobs that were used least recently, none of them after `before`, of those that dropping would free;
    /// the coldest first, with their times. Holds no more than that many in memory.
    pub(super) fn coldest(&self, limit: usize, before: u64) -> Vec<(u64, Digest)> {
        self.flush();
        let mut coldest = BinaryHeap::with_capacity(limit + 1);
        // A walk that ended early gives a shorter list.
        let _ = self.shared.home.read(|database| {
            tables::for_each_own(database, |digest, used| {
                // Without a time it was never used here: nobody knows how cold it is.
                if used > 0
                    && used <= before
                    && coldest.peek().is_none_or(|(most, _)| coldest.len() < limit || used < *most)
                {
                    coldest.push((used, digest));
                    if coldest.len() > limit {
                        coldest.pop();
                    }
                }
            })
        });
        let mut sorted: Vec<Reverse<(u64, Digest)>> = coldest.into_iter().map(Reverse).collect();
        sorted.sort_unstable_by_key(|Reverse(entry)| *entry);
        sorted.into_iter().map(|Reverse(entry)| entry).collect()
    }

    /// Waits until everything so far is on the disk; false when the disk refuses, or takes too long.
    pub(super) fn flush(&self) -> bool {
        let until = Instant::now() + FLUSH_DEADLINE;
        let mut queue = held(&self.shared.queue);
        let goal = queue.taken_in;
        let touched = !held(&self.shared.touched).is_empty();
        if queue.written >= goal && !touched {
            return true;
        }
        if touched {
            queue.taken_in += 1;
        }
        let goal = queue.taken_in;
        queue.urgent = true;
        let failures = queue.failures;
        self.shared.changed.notify_all();
        while queue.written < goal && !queue.stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || queue.failures > failures {
                return false;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.written >= goal
    }

    /// Whether so much waits to be written that nothing more should be begun.
    pub(super) fn is_backed_up(&self) -> bool {
        held(&self.shared.queue).pending.blobs.len() >= MOST_PENDING
    }

    pub(super) fn totals(&self) -> (Totals, u64) {
        let queue = held(&self.shared.queue);
        (queue.totals, queue.generation)
    }

    /// Corrects the totals by a count, unless they changed since `generation`.
    pub(super) fn correct_totals(&self, counted: Totals, generation: u64) {
        let mut queue = held(&self.shared.queue);
        if queue.generation == generation && queue.totals != counted {
            queue.totals = counted;
            queue.taken_in += 1;
        }
    }
}

impl Shared {
    fn record(&self, queue: &Queue, digest: &Digest) -> Option<BlobRecord> {
        match queue.layers().find_map(|batch| batch.blobs.get(digest)) {
            Some(RowChange::Put(record, _)) => Some(record.clone()),
            Some(RowChange::Drop) => None,
            None => self.home.read(|database| tables::record(database, digest)).flatten(),
        }
    }
}

impl Queue {
    /// What is not in the database, the newest first.
    fn layers(&self) -> impl Iterator<Item = &Batch> {
        std::iter::once(&self.pending).chain(self.writing.as_deref())
    }

    fn count(&mut self, old: Option<Totals>, new: Option<Totals>) {
        self.generation += 1;
        if let Some(old) = old {
            self.totals.blobs = self.totals.blobs.saturating_sub(old.blobs);
            self.totals.bytes = self.totals.bytes.saturating_sub(old.bytes);
            self.totals.shared_bytes = self.totals.shared_bytes.saturating_sub(old.shared_bytes);
        }
        if let Some(new) = new {
            self.totals.add(new);
        }
    }
}

impl Totals {
    /// What one blob counts for.
    pub(super) fn of(record: &BlobRecord) -> Self {
        let (bytes, shared_bytes) = if record.hold == Hold::Own { (record.size, 0) } else { (0, record.size) };
        Self { blobs: 1, bytes, shared_bytes }
    }

    pub(super) const fn add(&mut self, more: Self) {
        self.blobs += more.blobs;
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.shared_bytes = self.shared_bytes.saturating_add(more.shared_bytes);
    }
}

#[cfg(test)]
mod tests;
