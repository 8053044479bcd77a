//! Making an image whole: its listings, and what they name, by way of `pull`, so from peers first.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;

use super::adopt::Spoilt;
use super::metrics::Metrics;
use super::survey::Surveyor;
use super::{Held, Part};
use crate::containerd::inventory::Inventory;
use crate::image::{Digest, ImageName, MediaType, Reference};
use crate::pull::{Kind, Pace, Place, Pull, PullError, Resolved, Wanted};
use crate::store::{Provenance, Reason, Usage};
use crate::upstream::{Grant, Upstreams};

/// An index, a manifest, what they name: each shows what is to be fetched next.
const MOST_ROUNDS: usize = 8;
/// How many blobs are fetched at a time for somebody who waits.
const AT_ONCE: usize = 3;

/// Who makes images whole.
pub(super) struct Fetcher {
    pub(super) surveyor: Arc<Surveyor>,
    pub(super) pull: Pull,
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) inventory: watch::Receiver<Option<Arc<Inventory>>>,
    pub(super) spoilt: Spoilt,
    pub(super) metrics: Metrics,
    pub(super) pace: Arc<Pace>,
}

/// How far it is. Whoever waits looks at it now and then.
#[derive(Debug, Default)]
pub struct Progress {
    present: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes of the image that are here, and bytes of all of it as far as is known yet.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.present.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// An image as it is to be fetched.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) name: ImageName,
    pub(super) digest: Digest,
    pub(super) media_type: MediaType,
}

/// Why an image isn't whole.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody says what the tag means.
    #[error("nobody says what {0} means: {1}")]
    Tag(ImageName, #[source] PullError),
    /// Every upstream that could say what it means is near its limit.
    #[error("every upstream of {} is near its limit, and is left to those who wait for it", .0.registry)]
    Spared(ImageName),
    /// A blob can't be had.
    #[error("{digest} can't be had: {source}")]
    Blob {
        /// The blob.
        digest: Digest,
        /// What was said.
        source: PullError,
    },
    /// A blob began, and its end can't be had.
    #[error("{0} can't be had to its end")]
    CutShort(Digest),
    /// It came, and the store didn't take it.
    #[error("{0} came, and was not stored: the disk is full or read-only, or it is larger than cache.max_bytes")]
    NotStored(Digest),
    /// For so many bytes there is no room.
    #[error("there is no room below {} for what is missing, {bytes} bytes as far as is known", bound(.reason))]
    NoRoom {
        /// Bytes that are missing.
        bytes: u64,
        /// Which bound would be passed.
        reason: Reason,
    },
    /// Its manifest isn't one, or there is none for this machine.
    #[error("{0} is no image for this machine")]
    NoImage(Digest),
    /// A pattern under `cache.ignore` holds for it.
    #[error("{0} is ignored, as cache.ignore says")]
    Ignored(ImageName),
}

/// Why it isn't known that a registry has what it says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unproven {
    /// It doesn't deliver it.
    Refused,
    /// It gave no answer, or wasn't asked now.
    Unanswered,
}

const fn bound(reason: &Reason) -> &'static str {
    match reason {
        Reason::MaxBytes => "cache.max_bytes",
        _ => "cache.max_disk_percent",
    }
}

impl Fetcher {
    /// What a name means now, asked as the agent itself.
    pub(super) async fn resolve(&self, name: &ImageName) -> Result<Target, FetchError> {
        if self.surveyor.is_ignored(name) {
            return Err(FetchError::Ignored(name.clone()));
        }
        let (digest, media_type) = match &name.reference {
            Reference::Digest(digest) => (*digest, MediaType::octet_stream()),
            Reference::Tag(tag) => {
                let resolved = self.pull.resolve(&name.into(), &self.grant(name).await, tag).await;
                let resolved = resolved.map_err(|error| FetchError::Tag(name.clone(), error))?;
                (resolved.digest, resolved.media_type)
            }
        };
        Ok(Target { name: name.clone(), digest, media_type })
    }

    /// The same, for nobody who waits: where a registry's upstreams are all near their limits, other nodes are asked in
    /// their place.
    pub(super) async fn resolve_in_background(&self, name: &ImageName) -> Result<Target, FetchError> {
        let chain = self.upstreams.of(&name.registry);
        let is_near = !chain.is_empty() && chain.iter().all(|upstream| upstream.is_near_its_limit());
        let tag = match &name.reference {
            Reference::Tag(tag) if is_near && !self.surveyor.is_ignored(name) => tag,
            _ => return self.resolve(name).await,
        };
        let grant = self.grant(name).await;
        let known = self.pull.resolve_among_peers(&name.into(), &grant, tag, &self.pace).await;
        let Resolved { digest, media_type, .. } = known.ok_or_else(|| FetchError::Spared(name.clone()))?;
        Ok(Target { name: name.clone(), digest, media_type })
    }

    /// Fetches what is missing of an image for this machine, but what containerd holds: at the background's pace, or, for
    /// somebody who waits, as fast as it comes. Whether anything was fetched.
    pub(super) async fn make_whole(
        &self,
        target: &Target,
        in_background: bool,
        progress: &Progress,
    ) -> Result<bool, FetchError> {
        let mut tried = HashSet::new();
        for _ in 0..MOST_ROUNDS {
            let inventory = self.inventory.borrow().clone();
            let walked = self.surveyor.walk(target.digest, target.media_type.clone(), inventory.as_deref()).await;
            let is_missing = |part: &&Part| {
                let is_lent = inventory.as_ref().is_some_and(|inventory| inventory.contents.contains_key(&part.digest));
                part.held == Held::Missing && (!is_lent || self.spoilt.holds(&part.digest))
            };
            let missing: Vec<Part> = walked.parts.iter().filter(is_missing).cloned().collect();
            let lacking: u64 = missing.iter().map(|part| part.size).sum();
            let total: u64 = walked.parts.iter().map(|part| part.size).sum();
            progress.total.store(total, Ordering::Relaxed);
            progress.present.store(total - lacking, Ordering::Relaxed);
            if missing.is_empty() {
                return if walked.is_listed { Ok(!tried.is_empty()) } else { Err(FetchError::NoImage(target.digest)) };
            }
            if let Some(part) = missing.iter().find(|part| !tried.insert(part.digest)) {
                return Err(FetchError::NotStored(part.digest));
            }
            self.has_room(lacking).await?;
            let at_once = if in_background { 1 } else { AT_ONCE };
            let fetches = missing.into_iter().map(|part| async move {
                // A caller that leaves ends them all.
                self.fetch(target, &part, in_background, progress).await
            });
            stream::iter(fetches).buffer_unordered(at_once).try_collect::<()>().await?;
        }
        Err(FetchError::NoImage(target.digest))
    }

    async fn fetch(
        &self,
        target: &Target,
        part: &Part,
        in_background: bool,
        progress: &Progress,
    ) -> Result<(), FetchError> {
        let digest = part.digest;
        let is_manifest = digest == target.digest || part.media_type.is_manifest();
        let kind = if is_manifest { Kind::Manifest } else { Kind::Blob };
        let wanted = Wanted { place: Place::from(&target.name), grant: self.grant(&target.name).await, digest, kind };
        let found = match in_background {
            true => self.pull.fetch_in_background(&wanted, &self.pace).await,
            false => self.pull.fetch(&wanted, 0).await,
        };
        let mut reader = found.map_err(|source| FetchError::Blob { digest, source })?.read();
        while let Some(bytes) = reader.next().await.map_err(|_| FetchError::CutShort(digest))? {
            progress.present.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if in_background {
                self.metrics.background.inc_by(bytes.len() as u64);
            }
        }
        Ok(())
    }

    /// Has a registry deliver a blob that is here, in full, as to anybody. Its bytes come through `pull`, as any, which
    /// records them; a copy that containerd has stays in its place.
    pub(super) async fn prove(&self, place: &Place, digest: Digest, kind: Kind) -> Result<(), Unproven> {
        let store = &self.surveyor.store;
        let Some(holding) = store.holding(&digest).await else { return Err(Unproven::Unanswered) };
        self.has_room(holding.size).await.map_err(|_| Unproven::Unanswered)?;
        let wanted = Wanted { place: place.clone(), grant: Grant::Anonymous, digest, kind };
        let mut reader = match self.pull.fetch_in_background(&wanted, &self.pace).await {
            Ok(found) => found.read(),
            Err(PullError::NoAnswer(_) | PullError::Late(_) | PullError::Spared | PullError::Stopping) => {
                return Err(Unproven::Unanswered);
            }
            Err(_) => return Err(Unproven::Refused),
        };
        while let Ok(Some(bytes)) = reader.next().await {
            self.metrics.background.inc_by(bytes.len() as u64);
        }
        // What was cut, or came and couldn't be recorded, isn't fetched for this again and again.
        let held = store.provenances(vec![digest]).await;
        if held.values().any(Provenance::is_public) { Ok(()) } else { Err(Unproven::Refused) }
    }

    /// Nothing is evicted for what nobody waits for, and above the disk's mark nothing is fetched.
    async fn has_room(&self, bytes: u64) -> Result<(), FetchError> {
        let Some(usage) = self.surveyor.store.usage().await else { return Ok(()) };
        let disk = usage.disk.map(|disk| crate::store::DiskUse { used: disk.used.saturating_add(bytes), ..disk });
        let then = Usage { bytes: usage.bytes.saturating_add(bytes), disk, ..usage };
        match self.surveyor.store.bounds().excess(&then) {
            Some(excess) => Err(FetchError::NoRoom { bytes, reason: excess.reason }),
            None => Ok(()),
        }
    }

    /// As whom it is asked for: at each upstream by the agent's own credentials for that host, where it has any.
    async fn grant(&self, name: &ImageName) -> Grant {
        self.upstreams.own_grant(&name.registry, &name.repository).await.unwrap_or(Grant::Anonymous)
    }
}
