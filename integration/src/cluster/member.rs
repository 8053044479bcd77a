//! One node of a cluster.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::knock::call;
use super::{Answer, Files};
use crate::{
    Agent, AgentConfig, Containerd, ContainerdConfig, Fetched, Host, Login, Namespace, Puller, Rate, Release, node,
    until,
};

/// An agent on a machine of its own, and a containerd where the cluster has such. Its parts are public: tests stop them.
#[derive(Debug)]
pub struct Member {
    /// Its machine, as far as the network goes.
    pub host: Host,
    /// Its agent.
    pub agent: Agent,
    /// Its containerd.
    pub containerd: Option<Containerd>,
    hosts_dir: PathBuf,
}

impl Member {
    pub(super) async fn start(
        host: Host,
        folder: &Path,
        release: Option<Release>,
        mut config: AgentConfig,
    ) -> Result<Self> {
        let hosts_dir = folder.join("certs.d");
        std::fs::create_dir_all(&hosts_dir)?;
        config.set_path("containerd", "hosts_dir", &hosts_dir);
        let containerd = match release {
            Some(release) => {
                Some(start_containerd(release, &folder.join("containerd"), &hosts_dir, host.namespace()).await?)
            }
            None => None,
        };
        match &containerd {
            Some(containerd) => {
                config.set_path("containerd", "socket", &containerd.socket());
                config.set_path("containerd", "config", &containerd.config());
            }
            None => {
                config.set_path("containerd", "socket", &folder.join("no-containerd.sock"));
                config.set("containerd", "registries", "[]");
            }
        }
        let agent = Agent::start(&folder.join("larder"), &config).await?;
        if containerd.is_some() {
            let entered = async || node::has_entered_itself(&agent, &hosts_dir).unwrap_or(false).then_some(());
            until("the agent has entered itself", Duration::from_secs(10), entered).await?;
        }
        Ok(Self { host, agent, containerd, hosts_dir })
    }

    /// Pulls `registry/repository:tag` as containerd does.
    pub async fn pull(&self, image: &str) -> Result<Fetched> {
        self.pull_by(image, None).await
    }

    /// The same with credentials.
    pub async fn pull_as(&self, image: &str, login: &Login) -> Result<Fetched> {
        self.pull_by(image, Some(login)).await
    }

    async fn pull_by(&self, image: &str, login: Option<&Login>) -> Result<Fetched> {
        let (registry, rest) = image.split_once('/').context("an image without a registry")?;
        let (repository, reference) = match rest.split_once('@') {
            Some(parts) => parts,
            None => rest.rsplit_once(':').context("an image without a tag")?,
        };
        Puller::new(&self.agent, registry, login.cloned()).fetch(repository, reference).await
    }

    /// Who asks its mirror for one registry's content, without credentials.
    pub fn puller(&self, registry: &str) -> Puller {
        Puller::new(&self.agent, registry, None)
    }

    /// Fetches an image's content into its containerd by `ctr content fetch`; the seconds that it took. Dropped, it ends.
    pub fn fetch(&self, image: &str) -> Result<impl Future<Output = Result<f64>> + Send + use<>> {
        let ctr = self.containerd.as_ref().context("this node has no containerd")?.client()?;
        let hosts_dir = self.hosts_dir.to_str().context("hosts_dir isn't UTF-8")?.to_owned();
        let image = image.to_owned();
        Ok(async move {
            let begun = Instant::now();
            // With `--debug`, ctr draws no progress: it asks containerd ten times a second for the state of all that is
            // written, for which eight nodes with 41 blobs each have no CPU left on a small machine.
            ctr.run("default", &["--debug", "content", "fetch", "--hosts-dir", &hosts_dir, &image]).await?;
            Ok(begun.elapsed().as_secs_f64())
        })
    }

    /// SIGKILL to all that runs on it.
    pub fn kill(&mut self) {
        if let Some(containerd) = &mut self.containerd {
            containerd.kill();
        }
        self.agent.kill();
    }

    /// How many members its agent knows of, itself among them: those that may own what is looked for, and those that
    /// haven't been there for long enough.
    pub async fn sees(&self) -> Result<(usize, usize)> {
        let metrics = self.agent.metrics().await?;
        let count = |state| metrics.sum("larder_peer_members", &[&format!("state=\"{state}\"")]) as usize;
        Ok((count("settled"), count("joining")))
    }

    /// Calls a method at its port for peers from another machine, with this certificate or without: `Health/Check`.
    pub async fn call(&self, from: &Host, files: Option<&Files>, method: &str, message: &[u8]) -> Result<Answer> {
        call(from, (self.host.address(), super::PEERS_PORT).into(), files, method, message).await
    }

    /// Cuts its link; nobody is told.
    pub fn cut(&self) -> Result<()> {
        self.host.cut()
    }

    /// From now on, its link passes so much.
    pub fn set_rate(&self, rate: Option<Rate>) -> Result<()> {
        self.host.set_rate(rate)
    }
}

async fn start_containerd(
    release: Release,
    folder: &Path,
    hosts_dir: &Path,
    namespace: &Namespace,
) -> Result<Containerd> {
    let config = ContainerdConfig { namespace: Some(namespace.clone()), ..ContainerdConfig::with_hosts(hosts_dir) };
    Containerd::start(release, folder, &config).await
}
