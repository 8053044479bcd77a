use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::adopt::{Adopter, Spoilt};
use super::background::Background;
use super::collect::{Collected, Collector};
use super::copies::{self, CopiesHere};
use super::fetch::{FetchError, Fetcher, Progress};
use super::metrics::Metrics;
use super::openness::Prover;
use super::plan::{Subject, Unit};
use super::survey::Surveyor;
use super::{Catalog, scrub};
use crate::config::Cache;
use crate::containerd::client::Client;
use crate::containerd::inventory::Inventory;
use crate::image::{Digest, ImageName};
use crate::peers::Peers;
use crate::pull::{Pace, Pull};
use crate::store::Store;
use crate::upstream::Upstreams;

/// What changes within this time makes one new catalog.
const SETTLE: Duration = Duration::from_millis(500);
/// A new catalog is made so often even if nothing has changed: images expire.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What keeping needs.
pub struct Parts {
    /// `[cache]`
    pub config: Cache,
    /// What is kept.
    pub store: Store,
    /// By which images are made whole.
    pub pull: Pull,
    /// For the agent's own credentials.
    pub upstreams: Arc<Upstreams>,
    /// Whose images are kept.
    pub containerd: Arc<Client>,
    /// What it has and runs.
    pub inventory: watch::Receiver<Option<Arc<Inventory>>>,
    /// The other nodes, for copies.
    pub peers: Option<Peers>,
}

/// What is kept on this node. A cheap clone.
#[derive(Clone)]
pub struct Keep(Arc<Inner>);

struct Inner {
    catalog: watch::Receiver<Arc<Catalog>>,
    collector: Arc<Collector>,
    background: Arc<Background>,
    metrics: Metrics,
}

impl Keep {
    /// Looks around for the first time, and starts the tasks that keep; they end with `stop`.
    pub async fn start(parts: Parts, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let Parts { config, store, pull, upstreams, containerd, inventory, peers } = parts;
        let (metrics, news) = (Metrics::default(), Arc::new(Notify::new()));
        let (background_rate, scrub_rate, wanted_copies) = (config.background_rate, config.scrub_rate, config.copies);
        let surveyor = Arc::new(Surveyor::new(store.clone(), config, Some(containerd)).await);
        let (told, catalog) = watch::channel(Arc::new(Catalog::default()));
        let collector = Arc::new(Collector::new(Arc::clone(&surveyor), catalog.clone(), metrics.clone()));
        let spoilt = Spoilt::default();
        let adopter = Arc::new(Adopter {
            surveyor: Arc::clone(&surveyor),
            collector: Arc::clone(&collector),
            inventory: inventory.clone(),
            catalog: catalog.clone(),
            spoilt: spoilt.clone(),
        });
        let fetcher = Arc::new(Fetcher {
            surveyor: Arc::clone(&surveyor),
            pull,
            upstreams,
            inventory: inventory.clone(),
            spoilt,
            metrics: metrics.clone(),
            pace: Arc::new(Pace::new(background_rate)),
        });
        let prover = Prover { fetcher: Arc::clone(&fetcher), catalog: catalog.clone() };
        let background = Arc::new(Background { fetcher, catalog: catalog.clone(), news: Arc::clone(&news) });
        let here = CopiesHere::default();
        if let Some(peers) = peers {
            let (here, news) = (here.clone(), Arc::clone(&news));
            tasks.spawn(copies::follow(peers, wanted_copies, catalog.clone(), here, news, stop.clone()));
        }
        let follow = follow(surveyor, inventory, news, here, told, metrics.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(follow));
        let ends = stop.clone();
        tasks.spawn(async move { prover.prove_until(ends).await });
        tasks.spawn(scrub::scrub(store, scrub_rate, stop.clone()));
        let (adopting, releasing, holding) = (Arc::clone(&adopter), adopter, Arc::clone(&collector));
        let (ends, fetching) = (stop.clone(), Arc::clone(&background));
        tasks.spawn(async move { adopting.adopt_until(ends).await });
        let ends = stop.clone();
        tasks.spawn(async move { releasing.release_until(ends).await });
        let ends = stop.clone();
        tasks.spawn(async move { holding.hold_bounds(ends).await });
        let ends = stop.clone();
        tasks.spawn(async move { fetching.run(ends).await });
        Self(Arc::new(Inner { catalog, collector, background, metrics }))
    }

    /// The images that this node knows, and what it has of each.
    #[must_use]
    pub fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.0.catalog.clone()
    }

    /// Fetches all of an image for this machine, and keeps it until it was unused for `cache.expire_unused`. How far it
    /// is can be seen in `progress`; a caller that leaves ends it.
    ///
    /// # Errors
    /// When it isn't whole then, and why.
    pub async fn prefetch(&self, name: &ImageName, progress: &Progress) -> Result<Digest, FetchError> {
        let background = &self.0.background;
        let keep_for = background.fetcher.surveyor.cache.expire_unused.0;
        let until = Timestamp::now().saturating_add(keep_for).unwrap_or(Timestamp::MAX);
        let target = background.fetcher.resolve(name).await?;
        background.remember(&target, Some(until)).await;
        let made = background.fetcher.make_whole(&target, false, progress).await;
        background.news.notify_one();
        made.map(|_fetched| target.digest)
    }

    /// Brings the store within its bounds; with `dry_run`, only says what would go for it.
    pub async fn collect(&self, dry_run: bool) -> Collected {
        self.0.collector.collect(dry_run).await
    }

    /// What is here of no image that is known.
    pub async fn rest(&self) -> Rest {
        Rest::of(&self.0.collector).await
    }

    /// What is counted of it.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}

/// Makes a new catalog whenever something has changed. Ends with the store.
async fn follow(
    surveyor: Arc<Surveyor>,
    mut inventory: watch::Receiver<Option<Arc<Inventory>>>,
    news: Arc<Notify>,
    here: CopiesHere,
    told: watch::Sender<Arc<Catalog>>,
    metrics: Metrics,
) {
    let mut events = surveyor.store.events();
    loop {
        let now = inventory.borrow_and_update().clone();
        let catalog = surveyor.survey(now.as_deref(), &here.all()).await;
        metrics.show(&catalog);
        told.send_if_modified(|before| {
            let is_news = before.is_complete != catalog.is_complete || before.images != catalog.images;
            if is_news {
                *before = Arc::new(catalog);
            }
            is_news
        });
        tokio::select! {
            event = events.next() => if event.is_none() { return },
            changed = inventory.changed() => if changed.is_err() { return },
            () = news.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        tokio::time::sleep(SETTLE).await;
        while let Some(event) = events.next().now_or_never() {
            if event.is_none() {
                return;
            }
        }
    }
}

/// A cache that no agent runs on, as the command line looks at it. What runs on the node is as it was remembered.
pub struct Shelf {
    catalog: Arc<Catalog>,
    collector: Collector,
}

impl Shelf {
    /// Looks around in a store.
    pub async fn look(store: Store, config: &Cache) -> Self {
        let surveyor = Arc::new(Surveyor::new(store, config.clone(), None).await);
        let catalog = Arc::new(surveyor.survey(None, &[]).await);
        let (_, told) = watch::channel(Arc::clone(&catalog));
        Self { catalog, collector: Collector::new(surveyor, told, Metrics::default()) }
    }

    /// The images that are known to it.
    #[must_use]
    pub const fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// As [`Keep::collect`].
    pub async fn collect(&self, dry_run: bool) -> Collected {
        self.collector.collect(dry_run).await
    }

    /// As [`Keep::rest`].
    pub async fn rest(&self) -> Rest {
        Rest::of(&self.collector).await
    }
}

/// What is in the store of no image that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rest {
    /// Manifests and indexes that stand for themselves.
    pub manifests: u64,
    /// All its blobs.
    pub blobs: u64,
    /// Bytes that dropping them would free.
    pub bytes: u64,
}

impl Rest {
    async fn of(collector: &Collector) -> Self {
        let stock = collector.stock().await;
        let is_image = |unit: &&Unit| matches!(unit.subject, Subject::Image(_));
        let known: std::collections::HashSet<_> =
            stock.units.iter().filter(is_image).flat_map(|unit| &unit.parts).collect();
        let manifests = stock.units.iter().filter(|unit| !is_image(unit)).count() as u64;
        let unknown = stock.blobs.iter().filter(|blob| !known.contains(&blob.digest));
        unknown.fold(Self { manifests, ..Self::default() }, |rest, blob| Self {
            blobs: rest.blobs + 1,
            bytes: rest.bytes + blob.frees,
            ..rest
        })
    }
}
