//! What is known of each blob, and of tags: one redb file, and in front of it what is not yet written to it.
//!
//! Changes go into a batch in memory, where every reader sees them at once; a thread writes batches, about one a
//! second. Losing the last second is safe, since `blobs/` is the truth and what it holds without a record is hashed
//! before use. Losing the file is safe for the same reason. Where the file can't be written, the batch stays in memory,
//! within a bound; where there is no file, the database is in memory altogether.

mod batch;
mod database;
mod file;
mod known;
mod tables;
mod walk;
mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::batch::{Batch, RowChange};
use self::database::Home;
use super::boot::unix_now;
use super::disk::Disk;
use super::events::{Event, Events, Teller};
use super::locks::held;
use super::metrics::Metrics;
use super::record::{BlobRecord, Hold};
use super::space::Space;
use crate::image::{Digest, Registry, Repository};

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

    /// What may lie beside the file at `path`: an index that was set aside, and the marks of its trial.
    pub(super) fn beside(path: &Path) -> [PathBuf; 2] {
        [file::unreadable(path), file::Trial::path(path)]
    }

    /// What becomes of blobs from now on.
    pub(super) fn events(&self) -> Events {
        self.shared.teller.events()
    }

    /// Takes over the tags of an index file that can only be read.
    pub(super) fn adopt_tags(&self, path: &Path) {
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
        let was_idle = queue.pending.has_only_uses();
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
        self.shared.taken_in(queue, was_idle);
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
        let was_idle = queue.pending.has_only_uses();
        queue.pending.repositories.entry(*digest).or_default().insert((registry.clone(), repository.clone()));
        self.shared.taken_in(queue, was_idle);
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

    /// Counts a change, and wakes the writer where it doesn't know yet when to write: to be woken for each of thousands
    /// costs more than the changes do. `was_idle`: nothing but uses was pending before.
    fn taken_in(&self, mut queue: MutexGuard<'_, Queue>, was_idle: bool) {
        queue.taken_in += 1;
        let is_news = was_idle || queue.urgent;
        drop(queue);
        if is_news {
            self.changed.notify_all();
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
