use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::arrive::Delivery;
use super::aside::rest_from;
use super::audit::{Audit, Listed};
use super::blob::Blob;
use super::boot::Boot;
use super::bounds::{Bounds, Reason, Usage};
use super::disk::{Disk, RealDisk};
use super::errors::{CommitError, IngestError, OpenError};
use super::events::Events;
use super::hands::Stuck;
use super::ingest::{Ingest, Origin, Verified};
use super::locks::held;
use super::lookup::Sight;
use super::metrics::Metrics;
use super::provenance::Provenance;
use super::reader::BlobReader;
use super::record::TagRecord;
use super::shelves::Shelves;
use super::space::Standing;
use super::verify::Proof;
use crate::config::{Cache, Percent};
use crate::image::{Access, Digest, MediaType, Registry, Repository, Tag};

/// How many times a blob is looked for again after it was settled: once finds it, unless it was damaged meanwhile.
const LOOKS: usize = 3;

/// How many blobs are removed by one call of the disk's hands.
const DROPPED_AT_ONCE: usize = 64;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its folder; made when missing.
    pub dir: PathBuf,
    /// The most that it holds, in bytes; `None` for no such bound.
    pub max_bytes: Option<u64>,
    /// How full its disk may be, by whomever.
    pub max_disk_percent: Percent,
    /// How long a blob rests before it is brought to the disk. containerd syncs its own copy when a pull ends, and waits
    /// longer when ours is written at the same time; after half a minute the kernel has written it by itself.
    pub sync_after: Duration,
}

impl From<&Cache> for Options {
    fn from(cache: &Cache) -> Self {
        Self {
            dir: cache.dir.clone(),
            max_bytes: cache.max_bytes.map(|bytes| bytes.0),
            max_disk_percent: cache.max_disk_percent,
            sync_after: Duration::from_secs(30),
        }
    }
}

/// The store. A cheap clone; its threads end with the last one, or with [`Store::close`].
///
/// Every method that is `async` answers within seconds, whatever the disk does, except where it says otherwise; what
/// such a method began goes on when its future is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shelves: Arc<Shelves>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shelves.end();
    }
}

impl Store {
    /// Opens the store, and starts to mend it behind. Blocks for milliseconds; for up to a second while another
    /// process holds it.
    ///
    /// # Errors
    /// Only when another process goes on holding it, or the system gives no thread: a folder that can't be written to
    /// or made is warned of, and the store does what it can.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        Self::open_on(options, Arc::new(RealDisk), Boot::current())
    }

    pub(super) fn open_on(options: Options, disk: Arc<dyn Disk>, boot: Boot) -> Result<Self, OpenError> {
        let bounds = Bounds { max_bytes: options.max_bytes, max_disk_percent: options.max_disk_percent };
        let shelves = Arc::new(Shelves::open(options.dir, bounds, options.sync_after, disk, boot)?);
        let threads = Mutex::new(shelves.start()?);
        Ok(Self { inner: Arc::new(Inner { shelves, threads }) })
    }

    /// Writes what is not yet written, ends the threads, and lets go of the folder: another process can open it from then
    /// on. Other clones go on serving what is open, no more.
    pub async fn close(self) {
        self.shelves().space.turn_off();
        self.shelves().end();
        let threads = std::mem::take(&mut *held(&self.inner.threads));
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the store had died");
                }
            }
        });
        // A disk that hangs must not keep the process from ending. The folder is ours until then: a thread may yet write.
        match tokio::time::timeout(Duration::from_secs(10), joined).await {
            Ok(_) => self.shelves().let_go(),
            Err(_) => tracing::warn!("the store's disk does not answer: its last second of the index may be lost"),
        }
    }

    pub(super) fn shelves(&self) -> &Arc<Shelves> {
        &self.inner.shelves
    }

    /// Runs what may block. `None` when the disk is stuck.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Shelves) -> T + Send + 'static) -> Option<T> {
        let shelves = Arc::clone(self.shelves());
        let done = self.shelves().reading.hands.run(move || work(&shelves)).await;
        in_time(done)
    }

    /// The same for what takes a CPU for long, on a thread that gives way to others.
    async fn run_aside<T: Send + 'static>(&self, work: impl FnOnce(&Shelves) -> T + Send + 'static) -> Option<T> {
        let shelves = Arc::clone(self.shelves());
        let done = self.shelves().reading.hands.run_aside(move || work(&shelves)).await;
        in_time(done)
    }

    /// A blob that is held whole. One that must be hashed first is, and that takes as long as it takes: whoever has a
    /// deadline sets it around this call, and the work goes on for the next who asks.
    pub async fn blob(&self, digest: &Digest) -> Option<Blob> {
        if let Some(blob) = self.shelves().open.find(digest) {
            return Some(blob);
        }
        let digest = *digest;
        for _ in 0..LOOKS {
            match self.run(move |shelves| shelves.look(&digest)).await? {
                Sight::Whole(blob) => return Some(blob),
                Sight::Nothing => return None,
                Sight::Suspect => self.shelves().settle(&digest).await,
            }
        }
        None
    }

    /// Notes that a blob was used now. Never waits.
    pub fn used(&self, digest: &Digest) {
        self.shelves().index.touch(digest);
    }

    /// Notes that `registry` delivered a blob that is held, from `repository`, to a caller with or without authorization.
    pub async fn delivered(&self, digest: &Digest, registry: &Registry, repository: &Repository, access: Access) {
        let (digest, delivery) = (*digest, delivery(registry, repository, access));
        self.run(move |shelves| shelves.note_delivery(&digest, &delivery, |_| true)).await;
    }

    /// Notes that `registry` says it would give a blob that is held, from `repository`, to a caller with or without
    /// authorization. Whether that counts: of what it never delivered, any registry can say so.
    pub async fn confirmed(
        &self,
        digest: &Digest,
        registry: &Registry,
        repository: &Repository,
        access: Access,
    ) -> bool {
        let (digest, delivery) = (*digest, delivery(registry, repository, access));
        let counts = move |shelves: &Shelves| {
            let may_say = |known: &Provenance| known.may_be_given_for(&delivery.registry);
            shelves.note_delivery(&digest, &delivery, may_say)
        };
        self.run(counts).await.unwrap_or(false)
    }

    /// The repositories that are known to have a blob; at most 256 are remembered.
    pub async fn repositories(&self, digest: &Digest) -> Vec<(Registry, Repository)> {
        let digest = *digest;
        self.run(move |shelves| shelves.index.repositories(&digest)).await.unwrap_or_default()
    }

    /// Opens the place where a blob of `size` bytes arrives. All who ask while it does share one.
    ///
    /// # Errors
    /// Each means: stream it through. [`IngestError::TooLarge`] when it couldn't stay within the bounds.
    pub async fn ingest(&self, digest: &Digest, size: u64, origin: Origin) -> Result<Arc<Ingest>, IngestError> {
        let digest = *digest;
        self.run(move |shelves| shelves.begin(digest, size, &origin)).await.unwrap_or(Err(IngestError::Stuck))
    }

    /// The size of a blob that arrived in part and can be gone on with, for whoever asks.
    pub async fn resumable(&self, digest: &Digest) -> Option<u64> {
        let digest = *digest;
        self.run(move |shelves| Ingest::resumable(&shelves.layout.ingest(), &digest)).await.flatten()
    }

    /// Reads bytes that have arrived, as they lie there: at most [`CHUNK`](super::CHUNK) from `offset` on.
    ///
    /// # Errors
    /// What the disk says; `TimedOut` when it says nothing.
    pub async fn read_arrived(&self, ingest: &Ingest, offset: u64, len: usize) -> io::Result<Bytes> {
        self.shelves().reading.read(ingest.file(), offset, len).await
    }

    /// Gives up what arrived, wrong bytes say: its files go, and the next who asks begins anew. Who has it open can
    /// read on. A mere pause needs no call: what is there is taken up by the next [`Store::ingest`].
    pub async fn abandon(&self, ingest: &Arc<Ingest>) {
        let ingest = Arc::clone(ingest);
        self.run(move |shelves| shelves.abandon(&ingest)).await;
    }

    /// Puts a blob that arrived in its place, and returns it at once, open: the fsync comes after.
    ///
    /// # Errors
    /// When it can't be kept. Its ingest is discarded then; who reads its open file can go on.
    pub async fn commit(
        &self,
        verified: Verified,
        media_type: Option<MediaType>,
        registry: &Registry,
        repository: &Repository,
        access: Access,
    ) -> Result<Blob, CommitError> {
        let delivery = delivery(registry, repository, access);
        let committed = self.run(move |shelves| shelves.commit(&verified, media_type, &delivery)).await;
        committed.unwrap_or(Err(CommitError::Stuck))
    }

    /// Stores a small blob that is in memory whole; its hash is computed here.
    ///
    /// # Errors
    /// When the bytes aren't those of the digest, or can't be kept.
    pub async fn put(
        &self,
        digest: &Digest,
        bytes: Bytes,
        media_type: Option<MediaType>,
        registry: &Registry,
        repository: &Repository,
        access: Access,
    ) -> Result<Blob, CommitError> {
        let (digest, delivery) = (*digest, delivery(registry, repository, access));
        let stored = self.run(move |shelves| shelves.put(&digest, &bytes, media_type, &delivery)).await;
        stored.unwrap_or(Err(CommitError::Stuck))
    }

    /// Takes the blob whose reader found damage out of service at once; one that has come into its place since stays. Who
    /// else has it open is not stopped.
    pub async fn set_aside(&self, damaged: &BlobReader) {
        let (digest, file) = damaged.file();
        // Before the disk is asked, so that nobody gets it meanwhile.
        self.shelves().open.forget_file(&digest, &file);
        self.run(move |shelves| shelves.set_aside(&digest, Some(&*file))).await;
    }

    /// Tells the store what the disk said to a write of one who writes into an [`Ingest`]: if it is full or read-only,
    /// nothing new is begun for a while.
    pub fn note_write_error(&self, error: &io::Error) {
        self.shelves().space.note(error);
        self.shelves().grown.notify_one();
    }

    /// The last answer that an upstream gave about a tag.
    pub async fn tag(&self, registry: &Registry, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        let (registry, repository, tag) = (registry.clone(), repository.clone(), tag.clone());
        self.run(move |shelves| shelves.index.tag(&registry, &repository, &tag)).await.flatten()
    }

    /// Notes an upstream's answer about a tag.
    pub async fn record_tag(&self, registry: &Registry, repository: &Repository, tag: &Tag, record: TagRecord) {
        let (registry, repository, tag) = (registry.clone(), repository.clone(), tag.clone());
        self.run(move |shelves| shelves.index.record_tag(&registry, &repository, &tag, record)).await;
    }

    /// What is held, and how full the disk is. `None` when the disk doesn't answer.
    pub async fn usage(&self) -> Option<Usage> {
        self.run(Shelves::usage).await
    }

    /// What may be held.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.shelves().bounds
    }

    /// Whether blobs can be stored here at all; a disk that is full for the moment is no reason why not.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.shelves().space.standing() == Standing::Writable
    }

    /// What Prometheus sees.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shelves().metrics
    }

    /// Waits until something was stored or began to arrive since the last time. For one who waits.
    pub async fn grown(&self) {
        self.shelves().grown.notified().await;
    }

    /// What becomes of blobs from now on. A list that is made afterwards and these events together miss nothing.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shelves().index.events()
    }

    /// Whether somebody reads a blob.
    #[must_use]
    pub fn is_open(&self, digest: &Digest) -> bool {
        self.shelves().open.is_open(digest)
    }

    /// Removes blobs; how many bytes that freed, and how many blobs went. Where the reason is space, one that containerd
    /// has too frees none and stays.
    pub async fn drop_blobs(&self, digests: Vec<Digest>, reason: Reason) -> (u64, u64) {
        let (mut bytes, mut blobs) = (0_u64, 0);
        // So many at a time that the disk's deadline is one for a few.
        for some in digests.chunks(DROPPED_AT_ONCE) {
            let (some, begun) = (some.to_vec(), Instant::now());
            let Some(dropped) = self.run_aside(move |shelves| shelves.drop_all(&some, reason)).await else { break };
            bytes = bytes.saturating_add(dropped.0);
            blobs += dropped.1;
            rest_from(begun).await;
        }
        (bytes, blobs)
    }

    /// Removes what arrived in part and wasn't touched for `age`; the bytes freed.
    pub async fn drop_leftovers(&self, age: Duration) -> u64 {
        self.run(move |shelves| shelves.drop_leftovers(age)).await.unwrap_or(0)
    }

    /// The first `limit` blobs after `after`, in the order of their digests.
    pub async fn list(&self, after: Option<&Digest>, limit: usize) -> Vec<Listed> {
        let after = after.copied();
        self.run_aside(move |shelves| shelves.list(after.as_ref(), limit)).await.unwrap_or_default()
    }

    /// Hashes one blob, and sets it aside if it is not what its name says. Takes as long as reading it does.
    pub async fn check(&self, digest: &Digest) -> Proof {
        let (shelves, digest) = (Arc::clone(self.shelves()), *digest);
        // Ends early when the store does; a blob can take longer to hash than a disk may take to answer.
        tokio::task::spawn_blocking(move || shelves.check(&digest)).await.unwrap_or(Proof::Unknown)
    }

    /// Hashes every blob and sets aside those that are not what their names say. Takes as long as reading the store
    /// does; `progress` is told after each blob, with whether it is sound.
    pub async fn verify(&self, mut progress: impl FnMut(&Listed, bool)) -> Audit {
        let mut audit = Audit::default();
        let mut after = None;
        loop {
            let batch = self.list(after.as_ref(), 256).await;
            let Some(last) = batch.last() else { return audit };
            after = Some(last.digest);
            for listed in batch {
                let proof = self.check(&listed.digest).await;
                audit.count(proof, listed.size);
                progress(&listed, proof == Proof::Sound);
            }
        }
    }
}

fn in_time<T>(done: Result<T, Stuck>) -> Option<T> {
    done.inspect_err(|_| tracing::warn!("the store's disk does not answer in time")).ok()
}

fn delivery(registry: &Registry, repository: &Repository, access: Access) -> Delivery {
    Delivery { registry: registry.clone(), repository: repository.clone(), access }
}
