use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tracing::{info, warn};

use super::adopt::Seen;
use super::aside::give_way;
use super::blob::{OpenBlobs, Reading};
use super::boot::Boot;
use super::bounds::{Bounds, DiskUse};
use super::disk::Disk;
use super::errors::OpenError;
use super::hands::Hands;
use super::index::Index;
use super::ingest::Ingest;
use super::layout::Layout;
use super::lock::{Lock, Locking};
use super::locks::{Stop, held};
use super::metrics::Metrics;
use super::secret::Secret;
use super::space::{Space, Standing};
use super::syncer::ToSync;
use crate::image::Digest;

/// How many locks there are for the names below `blobs/`: enough that two blobs seldom meet in one.
const STRIPES: usize = 64;

/// Everything that the store's parts share.
#[derive(Debug)]
pub(super) struct Shelves {
    pub(super) layout: Layout,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) boot: Boot,
    pub(super) bounds: Bounds,
    pub(super) index: Index,
    pub(super) secret: Secret,
    pub(super) space: Arc<Space>,
    pub(super) open: OpenBlobs,
    pub(super) reading: Reading,
    pub(super) metrics: Metrics,
    /// What arrives now. Those whose transfer is gone are dead, and are removed by who comes by.
    pub(super) arriving: Mutex<HashMap<Digest, Weak<Ingest>>>,
    /// Blobs being hashed before their first use, for all who wait for one.
    pub(super) checking: Mutex<HashMap<Digest, watch::Receiver<()>>>,
    /// Found wrong on a disk that we can't remove them from.
    pub(super) shunned: Mutex<HashSet<Digest>>,
    pub(super) to_sync: ToSync,
    /// Whose turn it is to be adopted: one blob is hashed at a time.
    pub(super) adopting: Arc<Semaphore>,
    /// Files of containerd's that were found wrong.
    pub(super) known_wrong: Mutex<HashMap<Digest, Seen>>,
    /// Whether it was said that containerd's files can't be linked.
    pub(super) left_in_place: AtomicBool,
    /// Linked blobs that containerd is about to remove.
    pub(super) released: Mutex<HashSet<Digest>>,
    /// Something was stored, or begins to arrive.
    pub(super) grown: Notify,
    pub(super) stop: Stop,
    /// Numbers files that live for a moment.
    pub(super) numbers: AtomicU64,
    /// Tells this process's files in `ingest/` from those of one that died.
    pub(super) run: u64,
    lock: Mutex<Option<Lock>>,
    names: [Mutex<()>; STRIPES],
    arrivals: [Mutex<()>; STRIPES],
}

impl Shelves {
    pub(super) fn open(
        root: PathBuf,
        bounds: Bounds,
        sync_after: Duration,
        disk: Arc<dyn Disk>,
        boot: Boot,
    ) -> Result<Self, OpenError> {
        let layout = Layout::new(root);
        let metrics = Metrics::default();
        let made = layout.make(&*disk);
        let (standing, lock) = match Lock::take(&*disk, &layout.lock(), layout.root()) {
            Locking::Taken => return Err(OpenError::Locked { path: layout.lock() }),
            Locking::Ours { lock, writable: true } => {
                if let Err(error) = &made {
                    warn!(dir = %layout.root().display(), %error, "the store's folder is not complete");
                }
                (Standing::Writable, Some(lock))
            }
            Locking::Ours { lock, writable: false } => {
                let why = made.err().map(|error| error.to_string()).unwrap_or_default();
                warn!(dir = %layout.root().display(), why, "the store can't be written to: what it has is served, nothing is stored");
                (Standing::ReadOnly, Some(lock))
            }
            Locking::Unreachable(error) => {
                let error = made.err().unwrap_or(error);
                warn!(dir = %layout.root().display(), %error, "there is no folder for the store: everything is streamed through, nothing is stored; mend cache.dir and start again");
                (Standing::Absent, None)
            }
        };
        let space = Arc::new(Space::new(layout.root().to_owned(), standing, metrics.clone()));
        let secret = Secret::open(&layout.secret(), standing == Standing::Writable);
        let home = (standing == Standing::Writable).then(|| layout.index());
        let index = Index::open(Arc::clone(&disk), home, Arc::clone(&space), metrics.clone());
        if standing == Standing::ReadOnly {
            index.adopt_tags(&layout.index());
        }
        let shelves = Self {
            layout,
            disk,
            boot,
            bounds,
            index,
            secret,
            space,
            open: OpenBlobs::default(),
            reading: Reading { buffers: Arc::default(), hands: Hands::new(), reads: Arc::default() },
            metrics,
            arriving: Mutex::default(),
            checking: Mutex::default(),
            shunned: Mutex::default(),
            to_sync: ToSync::after(sync_after),
            adopting: Arc::new(Semaphore::new(1)),
            known_wrong: Mutex::default(),
            left_in_place: AtomicBool::new(false),
            released: Mutex::default(),
            grown: Notify::new(),
            stop: Stop::default(),
            numbers: AtomicU64::new(0),
            run: rand::random(),
            lock: Mutex::new(lock),
            names: std::array::from_fn(|_| Mutex::new(())),
            arrivals: std::array::from_fn(|_| Mutex::new(())),
        };
        shelves.show_totals();
        Ok(shelves)
    }

    /// Starts the threads.
    pub(super) fn start(self: &Arc<Self>) -> Result<Vec<JoinHandle<()>>, OpenError> {
        let begun = [
            self.start_one("larder-index", |shelves| shelves.index.write_until_stopped()),
            self.start_one("larder-sync", Self::sync_until_stopped),
            self.start_one("larder-mend", Self::mend_until_stopped),
        ];
        let threads: io::Result<Vec<_>> = begun.into_iter().collect();
        threads.map_err(|error| {
            self.end();
            OpenError::Thread(error)
        })
    }

    fn start_one(self: &Arc<Self>, name: &str, work: fn(&Self)) -> io::Result<JoinHandle<()>> {
        let shelves = Arc::clone(self);
        thread::Builder::new().name(name.into()).spawn(move || {
            give_way();
            work(&shelves);
        })
    }

    /// Tells the threads to end. The index is written a last time; what is not yet synced is, after the next start.
    pub(super) fn end(&self) {
        self.stop.set();
        self.to_sync.wake();
        self.index.stop();
    }

    /// Leaves the folder to the next process. Nothing is written any more.
    pub(super) fn let_go(&self) {
        drop(held(&self.lock).take());
    }

    /// Holds a blob's name: nobody else moves a file to it or away from it.
    pub(super) fn hold_name(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        held(&self.names[stripe(digest)])
    }

    /// Holds the right to begin a blob's arrival: looking at what an earlier one left may take long.
    pub(super) fn hold_arrival(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        held(&self.arrivals[stripe(digest)])
    }

    pub(super) fn show_totals(&self) {
        let (totals, _) = self.index.totals();
        self.metrics.set_held(&totals);
    }

    /// The disk's size and use, which are shown; `None` where it can't be asked. May block.
    pub(super) fn disk(&self) -> Option<DiskUse> {
        let disk = self.space.disk()?;
        self.metrics.set_disk(disk, self.bounds.disk_mark(disk));
        Some(disk)
    }

    /// Whether a blob arrives now.
    pub(super) fn is_receiving(&self) -> bool {
        held(&self.arriving).values().any(|ingest| ingest.strong_count() > 0)
    }

    /// Makes sure that the folder is still there and ours: somebody may have deleted it.
    pub(super) fn keep_folder(&self) {
        if self.space.standing() != Standing::Writable {
            return;
        }
        if let Err(error) = self.layout.make(&*self.disk) {
            warn!(dir = %self.layout.root().display(), %error, "the store's folder can't be made again");
            self.space.note(&error);
            return;
        }
        let mut lock = held(&self.lock);
        if lock.as_ref().is_some_and(Lock::is_in_place) {
            return;
        }
        match Lock::take(&*self.disk, &self.layout.lock(), self.layout.root()) {
            Locking::Ours { lock: new, .. } => {
                info!(dir = %self.layout.root().display(), "the store's folder was deleted and is made again");
                *lock = Some(new);
            }
            Locking::Taken => {
                warn!(dir = %self.layout.root().display(), "another process took over the store's folder: nothing is stored any more");
                self.space.turn_off();
            }
            Locking::Unreachable(error) => self.space.note(&error),
        }
    }
}

fn stripe(digest: &Digest) -> usize {
    let (Digest::Sha256([first, ..]) | Digest::Sha512([first, ..])) = digest;
    usize::from(*first) % STRIPES
}
