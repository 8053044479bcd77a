//! Making room, and dropping what has expired: the plan carried out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::listing::Listing;
use super::memory::millis;
use super::metrics::Metrics;
use super::plan::{self, Blob, Plan, Rank, Subject, Unit};
use super::survey::Surveyor;
use super::{Catalog, Known, Why};
use crate::image::{Digest, MediaType};
use crate::store::{Excess, Held, Listed, Reason, Store, Usage, aside, rest_from};

/// Others fill the disk too, so the bounds are looked at without being told.
const INTERVAL: Duration = Duration::from_secs(10);
/// The blobs of a pull begin together and are looked at together: to know what arrives is to look at each file of it.
const GATHER: Duration = Duration::from_millis(50);
/// A pass in vain isn't made again before so many times as long as it took have passed.
const REST: u32 = 20;
/// How often it is looked for what has expired, at the least and at the most.
const EXPIRE_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// What arrived in part and rested so long goes before anything whole does.
const LEFTOVER_AGE: Duration = Duration::from_secs(600);
/// How many are listed at a time.
const PAGE: usize = 1024;

/// Holds the store within its bounds.
#[derive(Debug)]
pub(super) struct Collector {
    surveyor: Arc<Surveyor>,
    catalog: watch::Receiver<Arc<Catalog>>,
    metrics: Metrics,
    /// One pass at a time: two would plan the same.
    passing: tokio::sync::Mutex<()>,
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// What goes, in this order.
    pub plan: Plan,
    /// Bytes that were freed, leftovers of what arrived in part among them.
    pub bytes: u64,
    /// Blobs that went.
    pub blobs: u64,
}

/// What is in the store, and what it is good for.
#[derive(Debug, Default)]
pub(super) struct Stock {
    pub(super) blobs: Vec<Blob>,
    pub(super) units: Vec<Unit>,
}

impl Collector {
    pub(super) fn new(surveyor: Arc<Surveyor>, catalog: watch::Receiver<Arc<Catalog>>, metrics: Metrics) -> Self {
        Self { surveyor, catalog, metrics, passing: tokio::sync::Mutex::default() }
    }

    /// Holds the store within its bounds, and drops what expires, until `stop`.
    pub(super) async fn hold_bounds(&self, stop: CancellationToken) {
        let expire_unused = self.surveyor.cache.expire_unused.0;
        let expire_every = (expire_unused / 8).clamp(EXPIRE_EVERY.0, EXPIRE_EVERY.1);
        let mut expire_at = Instant::now() + expire_every;
        let mut stuck = false;
        loop {
            let begun = Instant::now();
            let Some(collected) = stop.run_until_cancelled(self.collect(false)).await else { return };
            // Said once, and not every ten seconds.
            if collected.plan.left > 0 && !stuck {
                warn!(bytes = collected.plan.left, "the cache is above its bounds, and nothing more of it can go");
            }
            stuck = collected.plan.left > 0;
            if begun >= expire_at {
                if stop.run_until_cancelled(self.expire()).await.is_none() {
                    return;
                }
                expire_at = Instant::now() + expire_every;
            }
            let pause = if stuck { begun.elapsed() * REST } else { GATHER };
            let woken = async {
                tokio::time::sleep(pause).await;
                tokio::select! {
                    () = self.store().grown() => {}
                    () = tokio::time::sleep(INTERVAL) => {}
                    () = tokio::time::sleep_until(expire_at) => {}
                }
            };
            if stop.run_until_cancelled(woken).await.is_none() {
                return;
            }
        }
    }

    /// Brings the store within its bounds; with `dry_run`, only says what would go for it.
    pub(super) async fn collect(&self, dry_run: bool) -> Collected {
        let _alone = self.passing.lock().await;
        let Some(Excess { bytes: goal, reason }) = self.excess().await else { return Collected::default() };
        let leftovers = if dry_run { 0 } else { self.store().drop_leftovers(LEFTOVER_AGE).await };
        let goal = goal.saturating_sub(leftovers);
        if goal == 0 {
            return Collected { bytes: leftovers, ..Collected::default() };
        }
        let now = now();
        let plan = self.plan(move |stock| plan::make_room(&stock.blobs, stock.units, goal, reason, now)).await;
        let mut collected = match dry_run {
            true => Collected { bytes: plan.bytes, blobs: plan.digests().len() as u64, plan },
            false => self.carry_out(plan, reason).await,
        };
        collected.bytes += leftovers;
        collected
    }

    /// Drops what nothing has used for so long that it has expired.
    pub(super) async fn expire(&self) {
        let _alone = self.passing.lock().await;
        let keep_for = u64::try_from(self.surveyor.cache.expire_unused.0.as_millis()).unwrap_or(u64::MAX);
        let now = now();
        let Some(before) = now.checked_sub(keep_for) else { return };
        let plan = self.plan(move |stock| plan::expire(&stock.blobs, stock.units, before, now)).await;
        self.carry_out(plan, Reason::Expired).await;
    }

    /// containerd has given these up. Above the disk's mark they are to be free at once, as far as nothing needs them
    /// here: whoever had containerd remove an image counts on its space.
    pub(super) async fn let_go(&self, released: &[Digest]) {
        let is_by_disk = |excess: Excess| matches!(excess.reason, Reason::MaxDiskPercent | Reason::Full);
        if released.is_empty() || !self.excess().await.is_some_and(is_by_disk) {
            return;
        }
        let _alone = self.passing.lock().await;
        let released: HashSet<Digest> = released.iter().copied().collect();
        let now = now();
        let plan = self.plan(move |stock| plan::let_go(stock.blobs, stock.units, &released, now)).await;
        self.carry_out(plan, Reason::Released).await;
    }

    async fn carry_out(&self, plan: Plan, reason: Reason) -> Collected {
        let (bytes, blobs) = self.store().drop_blobs(plan.digests(), reason).await;
        let mut images = 0;
        for going in &plan.goes {
            if let Subject::Image(name) = &going.subject {
                images += 1;
                info!(image = %name, bytes = going.bytes, ?reason, "an image goes");
                self.surveyor.memory.drop(name);
            }
        }
        self.metrics.evicted(reason, images);
        if blobs > 0 {
            info!(bytes, blobs, images, ?reason, "made room");
        }
        Collected { plan, bytes, blobs }
    }

    /// Takes stock, and plans by it.
    async fn plan(&self, plan: impl FnOnce(Stock) -> Plan + Send + 'static) -> Plan {
        let stock = self.stock().await;
        aside("larder-plan", move || plan(stock)).await.unwrap_or_default()
    }

    /// What is in the store now.
    pub(super) async fn stock(&self) -> Stock {
        let catalog = self.catalog.borrow().clone();
        let (mut blobs, mut manifests) = (Vec::new(), Vec::new());
        let mut after = None;
        loop {
            let begun = std::time::Instant::now();
            // By a part of it, nobody knows what goes first.
            let Ok(page) = self.store().list(after.as_ref(), PAGE).await else { return Stock::default() };
            let Some(last) = page.last() else { break };
            after = Some(last.digest);
            for listed in page {
                if listed.media_type.as_ref().is_some_and(MediaType::is_manifest) {
                    manifests.push(listed.digest);
                }
                blobs.push(self.blob(&listed));
            }
            rest_from(begun).await;
        }
        let mut units: Vec<Unit> = catalog.images.iter().map(|known| unit(known)).collect();
        let known: HashSet<Digest> = units.iter().flat_map(|unit| unit.parts.iter().copied()).collect();
        manifests.retain(|digest| !known.contains(digest));
        let listings = self.surveyor.listings_of(&manifests).await;
        // A hundred thousand blobs take tenths of a second.
        let stock = aside("larder-stock", move || {
            units.extend(groups(&blobs, &manifests, &listings, &known));
            Stock { blobs, units }
        });
        stock.await.unwrap_or_default()
    }

    fn blob(&self, listed: &Listed) -> Blob {
        let frees = if listed.held == Held::Own { listed.size } else { 0 };
        let is_open = self.store().is_open(&listed.digest);
        Blob { digest: listed.digest, size: listed.size, frees, used: listed.used, is_open }
    }

    async fn excess(&self) -> Option<Excess> {
        let usage: Usage = self.store().usage().await?;
        self.store().bounds().excess(&usage)
    }

    fn store(&self) -> &Store {
        &self.surveyor.store
    }
}

/// An image, as it goes or stays.
fn unit(known: &Known) -> Unit {
    let rank = match known.why {
        Why::InUse => Rank::InUse,
        Why::Kept(_) => Rank::Kept,
        Why::Prefetched(_) | Why::Copy => Rank::Wanted,
        Why::Unused(_) => Rank::Unused,
    };
    let used = millis(known.last_used);
    let parts = known.parts.iter().map(|part| part.digest).collect();
    Unit { subject: Subject::Image(known.name.clone()), rank, used, parts }
}

/// What manifests of no known image name goes with them; what an index names, with the index. Such a group was used when
/// any of it was, what known images have too left out.
fn groups(
    blobs: &[Blob],
    manifests: &[Digest],
    listings: &HashMap<Digest, Arc<Listing>>,
    known: &HashSet<Digest>,
) -> Vec<Unit> {
    let children = |digest: &Digest| listings.get(digest).into_iter().flat_map(|listing| listing.digests());
    let named: HashSet<Digest> = manifests.iter().flat_map(&children).map(|blob| blob.digest).collect();
    let used: HashMap<&Digest, u64> = blobs.iter().map(|blob| (&blob.digest, blob.used)).collect();
    let group = |root: &Digest| {
        let mut parts = vec![*root];
        let mut seen: HashSet<Digest> = parts.iter().copied().collect();
        let mut next = 0;
        while let Some(digest) = parts.get(next).copied() {
            next += 1;
            let fresh = children(&digest).map(|blob| blob.digest).filter(|digest| used.contains_key(digest));
            parts.extend(fresh.filter(|digest| seen.insert(*digest)));
        }
        let own = parts.iter().filter(|part| !known.contains(part)).filter_map(|part| used.get(part));
        Unit { subject: Subject::Manifest(*root), rank: Rank::Unused, used: own.max().copied().unwrap_or(0), parts }
    };
    manifests.iter().filter(|manifest| !named.contains(manifest)).map(group).collect()
}

fn now() -> u64 {
    millis(Timestamp::now())
}
