//! Pulls through an agent whose registries have two upstreams each: the first is ill in one of all the ways there are,
//! the second is well. No pull may fail, none may wait long, and no wrong byte may be kept.

mod ill;
mod pair;

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Mutex;

pub use ill::{Ill, Place};

use crate::{Agent, AgentConfig, FaultRegistry, Folder, Image, Puller, Reply, Upstream};
use pair::Pair;

/// Blobs above this size go out before they are verified as a whole.
const VERIFIED_FIRST: usize = 4 << 20;

/// A pull that takes longer than any bound.
const HANGS: Duration = Duration::from_secs(60);

/// An agent, and for each [`Ill`] some registries whose first upstream has it.
#[derive(Debug)]
pub struct Failover {
    agent: Agent,
    pairs: Vec<Mutex<Pair>>,
    copies: usize,
    well: FaultRegistry,
    _folder: Folder,
}

/// One pull: a tag, its manifest, its config and its layer.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// What the first upstream has.
    pub ill: Ill,
    /// Where it shows.
    pub place: Place,
    /// The size of the layer.
    pub bytes: usize,
    /// The layer's content, and the byte at which the ill begins, follow from it. Never the same twice: what was
    /// pulled is kept.
    pub seed: u64,
    /// Which of the ill's registries.
    pub copy: usize,
}

/// How a pull went that did not fail.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Whether the first upstream was asked, and failed.
    pub met: bool,
    /// Whether the layer came by the second attempt, where that is allowed.
    pub retried: bool,
    /// The longest time to a head.
    pub to_head: Duration,
    /// The time of the whole layer.
    pub to_end: Duration,
}

/// How many pulls went.
#[derive(Debug, Default)]
pub struct Summary {
    /// All of them.
    pub pulls: usize,
    /// Those whose first upstream was asked, and failed.
    pub met: usize,
    /// What these had.
    pub met_ills: BTreeSet<Ill>,
    /// Those whose layer came by the second attempt, where that is allowed.
    pub retried: usize,
    /// The longest time to a head.
    pub slowest_head: Duration,
    /// Of all of them.
    pub elapsed: Duration,
    /// What failed, and why.
    pub failures: Vec<String>,
}

impl Failover {
    /// Of so many random pulls the cache has room for everything: they keep 8 GiB.
    pub const PULLS: usize = 1000;

    /// Starts all of it, with so many registries for each ill: a pull after one that failed at an upstream goes past
    /// that upstream for a while.
    pub async fn start(copies: usize) -> Result<Self> {
        let folder = Folder::new()?;
        let well = FaultRegistry::start().await?;
        let mut pairs = Vec::new();
        let mut config = AgentConfig::without_containerd(folder.path());
        // Nothing may go before it is verified.
        config.set_text("cache", "max_bytes", "16GiB").set_text("log", "level", "info");
        for ill in Ill::ALL {
            for copy in 0..copies {
                let pair = Pair::start(ill, copy).await?;
                let (first, second) = (pair.upstream(folder.path())?, Upstream::insecure(&well.url()));
                config.upstreams(&pair.name_behind_a_cut(), vec![pair.cut(), first.clone(), second.clone()]);
                config.upstreams(&pair.name, vec![first, second]);
                pairs.push(Mutex::new(pair));
            }
        }
        let agent = Agent::start(&folder.path().join("agent"), &config).await?;
        Ok(Self { agent, pairs, copies, well, _folder: folder })
    }

    /// Pulls by HTTP. Fails when anything of it fails, comes late, or has a wrong byte.
    pub async fn pull(&self, trial: Trial) -> Result<Outcome> {
        let which = trial.ill as usize * self.copies + trial.copy % self.copies;
        let mut pair = self.pairs[which].lock().await;
        let image = tokio::task::spawn_blocking(move || Image::opaque(trial.seed, trial.bytes)).await?;
        let repository = format!("acme/t{}", trial.seed);
        let at = StdRng::seed_from_u64(trial.seed).random_range(1..trial.bytes as u64 - 1);
        self.well.add(&image, &repository, "v1");
        pair.prepare(&image, &repository, trial.place, at);
        let begun = Instant::now();
        let pull = self.pull_from(&pair, trial, &image, &repository);
        let outcome = tokio::time::timeout(HANGS, pull).await.unwrap_or_else(|_| bail!("it hangs"));
        let met = pair.was_met(trial.place);
        pair.recover(&image, &repository).await?;
        self.well.forget(&image, &repository, "v1");
        let outcome = outcome.with_context(|| format!("{trial:?}, at byte {at}, after {:?}", begun.elapsed()))?;
        Ok(Outcome { met, ..outcome })
    }

    /// Pulls all of these, so many at once, and goes on after failures.
    pub async fn pull_all(&self, trials: impl IntoIterator<Item = Trial>, at_once: usize) -> Summary {
        let begun = Instant::now();
        let pulls = stream::iter(trials).map(async |trial| (trial.ill, self.pull(trial).await));
        let mut pulls = pulls.buffer_unordered(at_once);
        let mut summary = Summary::default();
        while let Some((ill, pull)) = pulls.next().await {
            summary.pulls += 1;
            match pull {
                Ok(outcome) => {
                    if outcome.met {
                        summary.met += 1;
                        summary.met_ills.insert(ill);
                    }
                    summary.retried += usize::from(outcome.retried);
                    summary.slowest_head = summary.slowest_head.max(outcome.to_head);
                }
                Err(error) => summary.failures.push(format!("{error:#}")),
            }
        }
        summary.elapsed = begun.elapsed();
        summary
    }

    /// Has every blob that was ever kept hashed; fails when one isn't what its name says, or was dropped before.
    pub async fn ensure_nothing_wrong_is_kept(&self) -> Result<()> {
        let dropped = self.agent.metrics().await?.sum("larder_store_evictions_total", &[]);
        ensure!(dropped == 0.0, "{dropped} blobs were dropped before they were verified");
        self.agent.say(&["cache", "verify"]).await?;
        Ok(())
    }

    /// Host and port of the first upstream of an ill's first registry, as metrics name it.
    pub async fn first_of(&self, ill: Ill) -> String {
        self.pairs[ill as usize * self.copies].lock().await.host()
    }

    /// The agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    async fn pull_from(&self, pair: &Pair, trial: Trial, image: &Image, repository: &str) -> Result<Outcome> {
        let puller = Puller::new(&self.agent, &pair.name_for(trial.place), None);
        let (within, to_end) = trial.ill.bounds();
        let (root, layer) = (image.root(), image.largest());
        let mut to_head = Duration::ZERO;
        let mut timely = |what: &str, reply: Result<Reply>| {
            let reply = reply.with_context(|| what.to_owned())?;
            to_head = to_head.max(reply.to_head);
            ensure!(reply.to_head <= within, "{what}: the head came after {:?}", reply.to_head);
            Ok(reply)
        };

        pair.before(Place::Resolve, trial.place);
        let reply = timely("the tag", puller.head(repository, "manifests/v1").await)?.expect(http::StatusCode::OK)?;
        ensure!(reply.header("docker-content-digest") == root.digest, "the tag: {reply:?}");
        ensure!(reply.header("content-type") == root.media_type, "the tag: {reply:?}");

        pair.before(Place::Manifest, trial.place);
        let manifest = puller.get(repository, &format!("manifests/{}", root.digest)).await;
        let manifest = timely("the manifest", manifest)?.expect(http::StatusCode::OK)?;
        ensure!(manifest.body == root.bytes, "the manifest has wrong bytes");
        ensure!(manifest.header("content-type") == root.media_type, "the manifest: {manifest:?}");
        let config = &image.blobs()[0];
        let reply = timely("the config", puller.get(repository, &format!("blobs/{}", config.digest)).await)?;
        ensure!(reply.expect(http::StatusCode::OK)?.body == config.bytes, "the config has wrong bytes");

        pair.before(Place::Start, trial.place);
        let path = format!("blobs/{}", layer.digest);
        let mut reply = timely("the layer", puller.get(repository, &path).await)?;
        let may_show = trial.ill.shows_once_in_large_blobs() && trial.bytes > VERIFIED_FIRST;
        let retried = may_show && (reply.cut.is_some() || !reply.status.is_success());
        if retried {
            reply = timely("the layer again", puller.get(repository, &path).await)?;
        }
        let reply = reply.expect(http::StatusCode::OK)?;
        ensure!(reply.cut.is_none(), "the layer was cut after {} bytes: {:?}", reply.body.len(), reply.cut);
        ensure!(reply.body == layer.bytes, "the layer has wrong bytes");
        ensure!(reply.to_end <= to_end, "the layer took {:?}", reply.to_end);
        Ok(Outcome { met: false, retried, to_head, to_end: reply.to_end })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pulls, met, met_ills: _, retried, slowest_head, elapsed, failures } = self;
        write!(f, "{pulls} pulls in {:.1} s: {} failed", elapsed.as_secs_f64(), failures.len())?;
        write!(f, "; {met} met an upstream that failed, {retried} were tried twice")?;
        write!(f, "; the slowest head came after {:.2} s", slowest_head.as_secs_f64())?;
        failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

impl Trial {
    /// One of the trials that there are, chosen by `random`: a small blob, or now and then one of 64 MiB.
    pub fn any(random: &mut StdRng) -> Self {
        let (ill, place) = loop {
            let ill = Ill::ALL[random.random_range(0..Ill::ALL.len())];
            let place = Place::ALL[random.random_range(0..Place::ALL.len())];
            if ill.occurs_in(place) {
                break (ill, place);
            }
        };
        let bytes = if random.random_ratio(1, 8) { 64 << 20 } else { random.random_range(4 << 10..512 << 10) };
        Self { ill, place, bytes, seed: random.random(), copy: random.random_range(0..usize::MAX) }
    }
}
