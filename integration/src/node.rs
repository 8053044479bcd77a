//! A node: containerd and the agent, in one folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Agent, AgentConfig, Containerd, ContainerdConfig, Folder, Release, require_root, until};

/// A machine in a folder. Its parts are public: tests stop and start them.
#[derive(Debug)]
pub struct Node {
    /// Its agent; `None` on a node without one.
    pub agent: Option<Agent>,
    /// Its containerd.
    pub containerd: Containerd,
    hosts_dir: PathBuf,
    /// Of the agent that it may yet have.
    config: AgentConfig,
    // The last to go.
    folder: Folder,
}

/// What a node will be; see [`Node::builder`].
#[derive(Debug)]
pub struct NodeBuilder {
    release: Release,
    folder: Folder,
    with_agent: bool,
    /// Whether the agent writes `_default/hosts.toml`, which is then waited for.
    pub expects_entry: bool,
    /// The configuration of its containerd.
    pub containerd: ContainerdConfig,
    /// The configuration of its agent.
    pub agent: AgentConfig,
}

impl Node {
    /// A node of that containerd, which reads hosts.toml, with an agent that enters itself there.
    pub fn builder(release: Release) -> Result<NodeBuilder> {
        require_root()?;
        let folder = Folder::new()?;
        let hosts_dir = folder.path().join("certs.d");
        let mut agent = AgentConfig::default();
        agent.set_path("containerd", "hosts_dir", &hosts_dir);
        let containerd = ContainerdConfig::with_hosts(&hosts_dir);
        Ok(NodeBuilder { release, folder, with_agent: true, expects_entry: true, containerd, agent })
    }

    /// The folder that containerd's `config_path` names.
    pub fn hosts_dir(&self) -> &Path {
        &self.hosts_dir
    }

    /// The folder of the whole node.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts an agent on a node that was built without one.
    pub async fn install_agent(&mut self) -> Result<()> {
        let agent = Agent::start(&self.folder.path().join("larder"), &self.config).await?;
        let entered = async || has_entered_itself(&agent, &self.hosts_dir).unwrap_or(false).then_some(());
        until("the agent has entered itself", Duration::from_secs(10), entered).await?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The agent, on a node that has one.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("this node has no agent")
    }

    /// The same, to stop and to start it.
    pub fn agent_mut(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("this node has no agent")
    }
}

impl NodeBuilder {
    /// The agent isn't started, nor configured.
    pub fn without_agent(mut self) -> Self {
        self.with_agent = false;
        self
    }

    /// Whether hosts.toml names the agent by `https://`.
    pub fn tls(mut self, tls: bool) -> Self {
        self.agent.set("mirror", "tls", tls.to_string());
        self
    }

    /// A registry by name, at one place: for the agent, and as `server` in the node's own hosts.toml, so that
    /// containerd finds it without the agent.
    pub fn registry(mut self, name: &str, url: &str) -> Result<Self> {
        self.agent.registry(name, &[url]);
        // A [host] table too: the older containerds take no notice of `server` without one.
        self = self
            .hosts(name, &format!("server = {url:?}\n\n[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n"))?;
        Ok(self)
    }

    /// A hosts.toml of the node's own, from before the agent came.
    pub fn hosts(self, registry: &str, text: &str) -> Result<Self> {
        let folder = self.hosts_dir().join(registry);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("hosts.toml"), text)?;
        Ok(self)
    }

    /// The folder that containerd's `config_path` names.
    pub fn hosts_dir(&self) -> PathBuf {
        self.folder.path().join("certs.d")
    }

    /// The folder of the whole node.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts containerd, then the agent, and waits for each.
    pub async fn start(mut self) -> Result<Node> {
        let hosts_dir = self.hosts_dir();
        std::fs::create_dir_all(&hosts_dir)?;
        let at = self.folder.path();
        let containerd = Containerd::start(self.release, &at.join("containerd"), &self.containerd).await?;
        self.agent.set_path("containerd", "socket", &containerd.socket());
        self.agent.set_path("containerd", "config", &containerd.config());
        let agent = match self.with_agent {
            true => Some(Agent::start(&at.join("larder"), &self.agent).await?),
            false => None,
        };
        if let Some(agent) = agent.as_ref().filter(|_| self.expects_entry) {
            let entered = async || has_entered_itself(agent, &hosts_dir).unwrap_or(false).then_some(());
            until("the agent has entered itself", Duration::from_secs(10), entered).await?;
        }
        Ok(Node { agent, containerd, hosts_dir, config: self.agent, folder: self.folder })
    }
}

/// Whether the agent stands in every folder, `_default` among them.
pub(crate) fn has_entered_itself(agent: &Agent, hosts_dir: &Path) -> Result<bool> {
    let ours = agent.address();
    for entry in std::fs::read_dir(hosts_dir)? {
        if !std::fs::read_to_string(entry?.path().join("hosts.toml"))?.contains(&ours) {
            return Ok(false);
        }
    }
    Ok(hosts_dir.join("_default").exists())
}
