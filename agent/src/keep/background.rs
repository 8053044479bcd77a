//! Making whole what should be whole, with nobody waiting for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::RngExt as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::fetch::{Fetcher, Progress, Target};
use super::memory::{Remembered, millis};
use super::{Catalog, Known, Why};
use crate::image::{Digest, ImageName};

/// What is missing may be on its way here: a pull that goes on, or what containerd has and isn't adopted yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failure it is tried again after so long, and then twice as long each time.
const RETRY: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));
/// How often it is looked for what is due.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Who looks for what to fetch.
pub(super) struct Background {
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) catalog: watch::Receiver<Arc<Catalog>>,
    /// Told when there is something new to be known of an image.
    pub(super) news: Arc<Notify>,
}

/// When something is due.
#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    failures: u32,
}

impl Due {
    fn first() -> Self {
        Self { at: Instant::now() + PATIENCE, failures: 0 }
    }

    fn after_failure(self) -> Self {
        let pause = RETRY.0.saturating_mul(1 << self.failures.min(10)).min(RETRY.1);
        let jitter = rand::rng().random_range(0.8..1.2);
        Self { at: Instant::now() + pause.mul_f64(jitter), failures: self.failures + 1 }
    }
}

impl Background {
    /// Makes images whole, one after the other, until `stop`.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let mut due: HashMap<(ImageName, Option<Digest>), Due> = HashMap::new();
        let mut present: HashSet<ImageName> = HashSet::new();
        loop {
            let round = async {
                self.fetch_kept(&mut due, &mut present).await;
                self.mend(&mut due).await;
                tokio::time::sleep(LOOK_EVERY).await;
            };
            if stop.run_until_cancelled(round).await.is_none() {
                return;
            }
        }
    }

    /// The images that the configuration names, before anything uses them.
    async fn fetch_kept(&self, due: &mut HashMap<(ImageName, Option<Digest>), Due>, present: &mut HashSet<ImageName>) {
        let patterns = &self.fetcher.surveyor.cache.keep;
        for name in patterns.iter().filter_map(|pattern| pattern.image()) {
            if present.contains(&name) {
                continue;
            }
            let is_known = self.catalog.borrow().images.iter().any(|known| known.name == name);
            let key = (name.clone(), None);
            let now = due.get(&key).copied().unwrap_or(Due { at: Instant::now(), failures: 0 });
            if is_known {
                present.insert(name);
            } else if now.at <= Instant::now() {
                match self.fetcher.resolve_in_background(&name).await {
                    Ok(target) => {
                        self.remember(&target, None).await;
                        present.insert(name);
                    }
                    Err(error) => {
                        warn!(image = %name, %error, "an image that is to be kept can't be had");
                        due.insert(key, now.after_failure());
                    }
                }
            }
        }
    }

    /// Whatever should be whole and isn't, what runs first, and last what nothing uses.
    async fn mend(&self, due: &mut HashMap<(ImageName, Option<Digest>), Due>) {
        let catalog = self.catalog.borrow().clone();
        let inventory = self.fetcher.inventory.borrow().clone();
        let memory = &self.fetcher.surveyor.memory;
        let is_in_runtime = |known: &Known| {
            inventory.iter().flat_map(|inventory| &inventory.images).any(|image| image.target == known.target)
        };
        let is_to_be_whole = |known: &Known| match known.why {
            // Of what containerd has, it has to say so first.
            Why::InUse => catalog.is_complete,
            Why::Kept(_) | Why::Prefetched(_) | Why::Copy => true,
            // Somebody counts on what containerd could run, but not at the cost of what made it go.
            Why::Unused(_) => is_in_runtime(known) && !memory.had_to_go(&known.name),
        };
        let is_torn = |known: &&Arc<Known>| !known.is_whole() && is_to_be_whole(known);
        let mut torn: Vec<&Arc<Known>> = catalog.images.iter().filter(is_torn).collect();
        torn.sort_by_key(|known| urgency(&known.why));
        let key = |known: &Known| (known.name.clone(), Some(known.target));
        let keys: HashSet<_> = torn.iter().map(|known| key(known)).collect();
        due.retain(|key, _| key.1.is_none() || keys.contains(key));
        for known in torn {
            let when = *due.entry(key(known)).or_insert_with(Due::first);
            if when.at > Instant::now() {
                continue;
            }
            let Some(root) = known.parts.first() else { continue };
            let media_type = root.media_type.clone();
            let target = Target { name: known.name.clone(), digest: known.target, media_type };
            match self.fetcher.make_whole(&target, true, &Progress::default()).await {
                // What is missing is containerd's, and can't be taken over, or not yet.
                Ok(false) => {
                    due.insert(key(known), when.after_failure());
                }
                Ok(true) => {
                    info!(image = %known.name, "an image is whole");
                    self.fetcher.metrics.fetched(true);
                    due.insert(key(known), Due::first());
                    self.news.notify_one();
                    // What has come into use meanwhile doesn't wait for all that isn't.
                    if matches!(known.why, Why::Unused(_)) {
                        return;
                    }
                }
                Err(error) => {
                    if when.failures == 0 {
                        warn!(image = %known.name, %error, "an image can't be made whole");
                    } else {
                        debug!(image = %known.name, %error, failures = when.failures, "an image can't be made whole");
                    }
                    self.fetcher.metrics.fetched(false);
                    due.insert(key(known), when.after_failure());
                }
            }
        }
    }

    /// Makes an image known before anything uses it.
    pub(super) async fn remember(&self, target: &Target, until: Option<Timestamp>) {
        let seconds = |at: Timestamp| u64::try_from(at.as_second()).unwrap_or(0);
        let remembered = Remembered {
            target: target.digest,
            media_type: target.media_type.clone(),
            used: millis(Timestamp::now()),
            prefetched_until: until.map(seconds),
            in_use: false,
        };
        self.fetcher.surveyor.memory.note(&target.name, remembered).await;
        self.news.notify_one();
    }
}

/// What is made whole first.
const fn urgency(why: &Why) -> u8 {
    match why {
        Why::InUse => 0,
        Why::Kept(_) | Why::Prefetched(_) | Why::Copy => 1,
        Why::Unused(_) => 2,
    }
}
