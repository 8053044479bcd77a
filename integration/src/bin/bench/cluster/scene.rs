//! A cluster before a pull, and what the pull was like.

use std::fmt;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result};
use futures_util::future::join_all;
use larder_integration::{Cluster, FaultRegistry, Image, Network, Rate, Release, tool, until};
use tokio::task::{AbortHandle, JoinSet};

use super::{NODES, all, link};
use crate::committed::Committed;
use crate::pulls::{NAME, REPOSITORY};

/// What the nodes may need together, in bytes: each has the image twice, and unpacked by CRI.
const ROOM: u64 = 4 << 30;

/// Eight nodes and upstream.
pub(super) struct Scene {
    pub(super) cluster: Cluster,
    pub(super) registry: FaultRegistry,
    pub(super) image: Image,
    // Where to leave logs at the end.
    logs: Option<PathBuf>,
    // Other upstreams, and what all of it is on.
    _others: Vec<FaultRegistry>,
    _network: Network,
}

/// What nodes took.
pub(super) struct Run {
    /// The seconds of the slowest that got it all.
    pub(super) last: f64,
    /// How many copies left upstream by then, manifests included.
    pub(super) copies: f64,
    pub(super) manifests: usize,
    pub(super) failed: Failures,
}

/// Pulls under way.
pub(super) struct Begun {
    pulls: JoinSet<(usize, Result<f64>)>,
    handles: Vec<(usize, AbortHandle)>,
    // Those that were ended: what becomes of them doesn't count.
    ended: Mutex<Vec<usize>>,
}

/// Who failed, and how.
#[derive(Default)]
pub(super) struct Failures(Vec<(usize, Error)>);

impl Scene {
    /// Nodes that have nothing, and this many upstreams that have the image; the first is the one that is counted. `name`
    /// is the variant's: if `LARDER_BENCH_LOGS` names a folder, all that was logged is left in a folder of that name there.
    pub(super) async fn set(name: &str, seed: u64, upstreams: usize) -> Result<Self> {
        let logs = std::env::var_os("LARDER_BENCH_LOGS");
        let logs = logs.map(|folder| PathBuf::from(folder).join(format!("{name} {seed}").replace([' ', ','], "-")));
        let level = if logs.is_some() { "info,larder=debug" } else { "info" };
        let image = (0..40).fold(Image::builder(seed).layer(44 << 20), |builder, _| builder.layer(512 << 10)).build();
        let network = Network::new()?;
        let rate = Rate::mbit(link());
        let mut registries = Vec::new();
        for _ in 0..upstreams {
            let registry = FaultRegistry::start_on(&network.host(Some(rate))?)?;
            registry.add(&image, REPOSITORY, "v1");
            registries.push(registry);
        }
        let urls: Vec<String> = registries.iter().map(FaultRegistry::url).collect();
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let release =
            if tool(&format!("{}/VERSION", Release::Newest)).is_ok() { Release::Newest } else { Release::Sid };
        let builder = Cluster::builder(&network, NODES, Some(rate))?.in_memory(ROOM).with_containerd(release);
        let builder = builder.registry("reg.test", &urls).configure(move |_, config| {
            config.set_text("log", "level", level);
        });
        let cluster = builder.start().await?;
        let registry = registries.remove(0);
        registry.clear_log();
        Ok(Self { cluster, registry, image, logs, _others: registries, _network: network })
    }

    /// The seconds of one download, by the rate of a link.
    pub(super) fn ideal(&self) -> f64 {
        Rate::mbit(link()).seconds(self.image.size())
    }

    /// All nodes but these pull at the same moment.
    pub(super) async fn pull(&mut self, but: &[usize]) -> Result<Run> {
        self.begin(&all(but))?.finish(self).await
    }

    /// All nodes pull at the same moment, as kubelet does, by CRI: few layers at a time. The seconds are those until the
    /// last blob was in containerd's store.
    pub(super) async fn pull_by_cri(&self) -> Result<Run> {
        let pulls = self.cluster.members().iter().enumerate().map(async |(number, member)| {
            let pulled = async {
                let containerd = member.containerd.as_ref().context("this node has no containerd")?;
                let committed = Committed::watch(containerd, &self.image)?;
                let begun = Instant::now();
                let fetched = tokio::task::spawn_blocking(move || committed.all().map(|()| begun.elapsed()));
                containerd.pull(NAME).await?;
                Ok(fetched.await??.as_secs_f64())
            };
            (number, pulled.await)
        });
        let (mut last, mut failed) = (0.0_f64, Failures::default());
        for (number, pulled) in join_all(pulls).await {
            match pulled {
                Ok(seconds) => last = last.max(seconds),
                Err(error) => failed.0.push((number, error)),
            }
        }
        Ok(Run { last, copies: 0.0, manifests: 0, failed }.counted_again(self))
    }

    /// These nodes begin to pull.
    pub(super) fn begin(&self, numbers: &[usize]) -> Result<Begun> {
        let mut begun = Begun { pulls: JoinSet::new(), handles: Vec::new(), ended: Mutex::default() };
        for &number in numbers {
            let fetch = self.cluster.member(number).fetch(NAME)?;
            let handle = begun.pulls.spawn(async move { (number, fetch.await) });
            begun.handles.push((number, handle));
        }
        Ok(begun)
    }

    /// Waits until so many copies have left upstream.
    pub(super) async fn has_sent(&self, copies: f64) -> Result<()> {
        until("upstream has sent enough", Duration::from_secs(30), async || {
            (self.registry.copies(&self.image) >= copies).then_some(())
        })
        .await
    }

    /// Waits until every byte has left upstream.
    pub(super) async fn has_given_all(&self) -> Result<()> {
        until("upstream has given all", Duration::from_secs(60), async || {
            self.registry.has_given(&self.image).then_some(())
        })
        .await
    }

    /// Who asked upstream last for some of the large layer.
    pub(super) fn fetching(&self) -> Option<usize> {
        let requests = self.registry.requests();
        let digest = &self.image.largest().digest;
        let from = requests.iter().rfind(|request| request.method == "GET" && request.target.contains(digest))?.from?;
        self.cluster.members().iter().position(|member| member.host.address() == from)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let Some(folder) = &self.logs else { return };
        let requests = self.registry.requests();
        let mut lines = String::new();
        for request in requests {
            let _ = writeln!(lines, "{} {request}", request.at);
        }
        let written = std::fs::create_dir_all(folder).and_then(|()| {
            std::fs::write(folder.join("upstream"), lines)?;
            let mut members = self.cluster.members().iter().enumerate();
            members.try_for_each(|(number, member)| {
                let name = format!("{number} {}", member.host.address()).replace(' ', "-");
                std::fs::write(folder.join(name), member.agent.log())
            })
        });
        if let Err(error) = written {
            eprintln!("no logs in {}: {error}", folder.display());
        }
    }
}

impl Begun {
    /// A node is about to be killed or cut off: its pull ends, and doesn't count.
    pub(super) fn end(&self, number: usize) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        for (_, handle) in self.handles.iter().filter(|(of, _)| *of == number) {
            handle.abort();
        }
    }

    /// Waits for those that count.
    pub(super) async fn finish(mut self, scene: &Scene) -> Result<Run> {
        let (mut last, mut failed) = (0.0_f64, Failures::default());
        while let Some(pulled) = self.pulls.join_next().await {
            // An error here: it was ended.
            let Ok((number, pulled)) = pulled else { continue };
            match pulled {
                Ok(seconds) => last = last.max(seconds),
                Err(error) => failed.0.push((number, error)),
            }
        }
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        failed.0.retain(|(number, _)| !ended.contains(number));
        Ok(Run { last, copies: 0.0, manifests: 0, failed }.counted_again(scene))
    }
}

impl Run {
    /// With upstream's counts of now.
    pub(super) fn counted_again(mut self, scene: &Scene) -> Self {
        self.copies = scene.registry.copies(&scene.image);
        self.manifests = scene.registry.count("GET", "/manifests/");
        self
    }

    /// The slower of two, and all failures.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.last = self.last.max(other.last);
        self.failed.0.extend(other.failed.0);
        self
    }
}

impl Failures {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(usize, Error)> {
        self.0.iter()
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(number, error)| writeln!(f, "    node {number} failed: {error:#}"))
    }
}
