//! Several nodes that are one cluster: each agent on a machine of its own, over links that can be slow or cut.
//!
//! A [`Member`] is asked by the test as its containerd would ask, or has a real one. What upstream gave is counted by
//! upstream itself: a [`FaultRegistry`] on a machine of the same network.

mod authority;
pub(crate) mod dns;
mod knock;
mod member;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::{join_all, try_join_all};

pub use authority::{Authority, Files};
pub use dns::NameServer;
pub use knock::Answer;
pub use member::Member;

use crate::{AgentConfig, Fetched, Folder, Host, Image, Network, Rate, Release, until};

/// Where agents listen for each other.
pub const PEERS_PORT: u16 = 7441;

/// How long the members of a cluster may take to know of each other, and of who owns what.
const SETTLED: Duration = Duration::from_secs(30);

type Configure = Arc<dyn Fn(usize, &mut AgentConfig) + Send + Sync>;

/// A cluster. Dropped, all of it is gone.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    plan: Plan,
}

/// What each of its members will be; see [`Cluster::builder`].
#[derive(Debug)]
pub struct ClusterBuilder {
    hosts: Vec<Host>,
    plan: Plan,
}

#[derive(Clone)]
struct Plan {
    folder: Arc<Folder>,
    authority: Arc<Authority>,
    release: Option<Release>,
    seeds: Option<Vec<String>>,
    configure: Vec<Configure>,
}

impl Cluster {
    /// So many nodes on links of this rate, without containerd.
    pub fn builder(network: &Network, size: usize, rate: Option<Rate>) -> Result<ClusterBuilder> {
        let folder = Arc::new(Folder::new()?);
        let authority = Arc::new(Authority::new()?);
        let hosts = (0..size).map(|_| network.host(rate)).collect::<Result<_>>()?;
        let plan = Plan { folder, authority, release: None, seeds: None, configure: Vec::new() };
        Ok(ClusterBuilder { hosts, plan })
    }

    /// All of its nodes, whether they run or not.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One of its nodes.
    pub fn member(&self, number: usize) -> &Member {
        &self.members[number]
    }

    /// The same, to stop and to start it.
    pub fn member_mut(&mut self, number: usize) -> &mut Member {
        &mut self.members[number]
    }

    /// Who its members believe.
    pub fn authority(&self) -> &Authority {
        &self.plan.authority
    }

    /// One more node, configured like those that there are; doesn't wait until the others know it.
    pub async fn join(&mut self, host: Host) -> Result<usize> {
        let seeds = self.plan.seeds_for(self.members.iter().map(|member| &member.host));
        self.members.push(self.plan.member(self.members.len(), host, &seeds).await?);
        Ok(self.members.len() - 1)
    }

    /// Waits until every agent that runs knows of as many members as there are.
    pub async fn settle(&mut self) -> Result<()> {
        let running = self.members.iter_mut().map(|member| member.agent.is_running()).filter(|&runs| runs).count();
        let all: Vec<usize> = (0..self.members.len()).collect();
        self.settle_among(&all, running).await
    }

    /// Waits until those of these agents that run know of `count` members.
    pub async fn settle_among(&mut self, numbers: &[usize], count: usize) -> Result<()> {
        for &number in numbers {
            let member = &mut self.members[number];
            if !member.agent.is_running() {
                continue;
            }
            let mut seen = None;
            let waited = until("the cluster is settled", SETTLED, async || {
                seen = member.sees().await.ok();
                (seen == Some((count, 0))).then_some(())
            })
            .await;
            waited.with_context(|| format!("node {number} sees {seen:?} of {count}"))?;
        }
        Ok(())
    }

    /// These nodes pull an image at the same moment, from nothing or with what they have.
    pub async fn pull_on(&self, numbers: &[usize], image: &str) -> Vec<Result<Fetched>> {
        join_all(numbers.iter().map(|&number| async move {
            let fetched = self.members[number].pull(image).await;
            fetched.with_context(|| format!("node {number} pulls {image}"))
        }))
        .await
    }

    /// All nodes pull an image at the same moment; each must get all of it.
    pub async fn pull(&self, name: &str, image: &Image) -> Result<Vec<Fetched>> {
        let all: Vec<usize> = (0..self.members.len()).collect();
        let fetched: Vec<Fetched> = self.pull_on(&all, name).await.into_iter().collect::<Result<_>>()?;
        ensure!(fetched.iter().all(|fetched| fetched.root == image.root().digest));
        Ok(fetched)
    }

    /// The sum of a metric over the agents that answer.
    pub async fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let metrics = join_all(self.members.iter().map(|member| member.agent.metrics())).await;
        metrics.into_iter().flatten().map(|metrics| metrics.sum(name, labels)).sum()
    }
}

impl ClusterBuilder {
    /// Each has a containerd of this release, and enters itself there.
    pub fn with_containerd(mut self, release: Release) -> Self {
        self.plan.release = Some(release);
        self
    }

    /// All that they have is in memory, if that many bytes are free there: nodes on one machine share its disk, and those that
    /// they stand for don't. Says so if it isn't.
    pub fn in_memory(mut self, bytes: u64) -> Self {
        match Folder::in_memory(bytes) {
            Ok(folder) => self.plan.folder = Arc::new(folder),
            Err(error) => eprintln!("the nodes share this machine's disk, which shows: {error:#}"),
        }
        self
    }

    /// These seeds, in the place of the first two nodes.
    pub fn seeds(mut self, seeds: &[&str]) -> Self {
        self.plan.seeds = Some(seeds.iter().map(|&seed| seed.to_owned()).collect());
        self
    }

    /// Changes the configuration of each agent, by its number.
    pub fn configure(mut self, change: impl Fn(usize, &mut AgentConfig) + Send + Sync + 'static) -> Self {
        self.plan.configure.push(Arc::new(change));
        self
    }

    /// A registry by name, at these upstreams.
    pub fn registry(self, name: &str, upstreams: &[&str]) -> Self {
        let name = name.to_owned();
        let upstreams: Vec<String> = upstreams.iter().map(|&upstream| upstream.to_owned()).collect();
        self.configure(move |_, config| {
            config.registry(&name, &upstreams.iter().map(String::as_str).collect::<Vec<_>>());
        })
    }

    /// The machines that the nodes will be on.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Starts all of them at once, and waits until they know of each other.
    pub async fn start(self) -> Result<Cluster> {
        let mut cluster = self.launch().await?;
        cluster.settle().await?;
        Ok(cluster)
    }

    /// Starts all of them at once, and waits until each is ready by itself.
    pub async fn launch(self) -> Result<Cluster> {
        let Self { hosts, plan } = self;
        let seeds = plan.seeds_for(hosts.iter());
        let members = hosts.into_iter().enumerate().map(|(number, host)| plan.member(number, host, &seeds));
        Ok(Cluster { members: try_join_all(members).await?, plan: plan.clone() })
    }
}

impl Plan {
    fn seeds_for<'a>(&self, hosts: impl Iterator<Item = &'a Host>) -> Vec<String> {
        let own = || hosts.take(2).map(|host| format!("{}:{PEERS_PORT}", host.address())).collect();
        self.seeds.clone().unwrap_or_else(own)
    }

    async fn member(&self, number: usize, host: Host, seeds: &[String]) -> Result<Member> {
        let folder = self.folder.path().join(number.to_string());
        let files = self.authority.files();
        let mut config = AgentConfig::default();
        config.namespace = Some(host.namespace().clone());
        config
            .set_text("peers", "listen", &format!("0.0.0.0:{PEERS_PORT}"))
            .set("peers", "seeds", format!("{seeds:?}"))
            .set_path("peers", "ca", &files.certificate)
            .set_path("peers", "key", &files.key);
        self.configure.iter().for_each(|change| change(number, &mut config));
        Member::start(host, &folder, self.release, config).await.with_context(|| format!("starting node {number}"))
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("folder", &self.folder).finish_non_exhaustive()
    }
}
