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
use std::collections::{BinaryHeap, HashMap};
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
use super::record::{BlobRecord, Openness, TagRecord};
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
    pub(super) bytes: u64,
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
        let old_size = old.as_ref().map(|record| record.size);
        let new_size = match change(old) {
            Change::Keep => return,
            Change::Put(record, checksums) => {
                let size = record.size;
                self.shared.teller.tell(|| Event::Kept(*digest, record.provenance.clone()));
                queue.pending.put(digest, record, checksums);
                Some(size)
            }
            Change::Drop => {
                if old_size.is_none() && self.shared.home.read(|db| tables::has_blob(db, digest)) == Some(false) {
                    return;
                }
                queue.pending.drop_blob(digest);
                self.shared.teller.tell(|| Event::Gone(*digest));
                None
            }
        };
        queue.count(old_size, new_size);
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

    /// Sets when a blob was used last, for one that was found: in seconds since 1970.
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
        queue.pending.repositories.insert((*digest, registry.clone(), repository.clone()));
        queue.taken_in += 1;
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// The repositories that are known to have a blob.
    pub(super) fn repositories(&self, digest: &Digest) -> Vec<(Registry, Repository)> {
        let queue = held(&self.shared.queue);
        let mut known = self.shared.home.read(|database| tables::repositories(database, digest)).unwrap_or_default();
        let pending = queue.layers().flat_map(|batch| &batch.repositories);
        known.extend(pending.filter(|(of, _, _)| of == digest).map(|(_, reg, repo)| (reg.clone(), repo.clone())));
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

    /// Blobs in the order of their digests, the first `limit` after `after`.
    pub(super) fn scan(&self, after: Option<&Digest>, limit: usize) -> Vec<(Digest, BlobRecord)> {
        self.flush();
        self.shared.home.read(|database| tables::scan(database, after, limit)).unwrap_or_default()
    }

    /// The `limit` blobs that were used least recently, none of them after `before`; the coldest first, with their
    /// times. Holds no more than that many in memory.
    pub(super) fn coldest(&self, limit: usize, before: u64) -> Vec<(u64, Digest)> {
        self.flush();
        let mut coldest = BinaryHeap::with_capacity(limit + 1);
        // A walk that ended early gives a shorter list.
        let _ = self.shared.home.read(|database| {
            tables::for_each_used(database, |digest, used| {
                if used <= before && coldest.peek().is_none_or(|(most, _)| coldest.len() < limit || used < *most) {
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

    fn count(&mut self, old: Option<u64>, new: Option<u64>) {
        self.generation += 1;
        let totals = &mut self.totals;
        if let Some(size) = old {
            totals.blobs = totals.blobs.saturating_sub(1);
            totals.bytes = totals.bytes.saturating_sub(size);
        }
        if let Some(size) = new {
            totals.blobs += 1;
            totals.bytes = totals.bytes.saturating_add(size);
        }
    }
}

#[cfg(test)]
mod tests;
