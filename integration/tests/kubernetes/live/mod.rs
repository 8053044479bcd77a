//! On a real cluster: what the apiserver takes, and what becomes of it on nodes.

mod nodes;

use std::time::Duration;

use anyhow::Result;
use larder_integration::{ControlPlane, FaultRegistry, Host, Image, Joining, KubernetesNode, Network, Release, until};
use serde_json::Value;

/// On two cores that also do other things, a Pod takes seconds to start, and more than a minute to be replaced.
const SOON: Duration = Duration::from_secs(120);

/// A cluster: the apiserver and what belongs to it on one machine, a registry on another, nodes on more.
struct Site {
    // Nodes end before what they ask.
    nodes: Vec<KubernetesNode>,
    control: ControlPlane,
    registry: FaultRegistry,
    registry_url: String,
    network: Network,
}

impl Site {
    /// One without nodes and controllers: documents are taken, and nothing comes of them.
    async fn new() -> Result<Self> {
        let network = Network::new()?;
        let (control, registry) = (network.host(None)?, network.host(None)?);
        let registry_url = format!("http://{}", registry.address());
        let registry = FaultRegistry::start_on(&registry)?;
        registry.add(&Image::runnable(3)?, "pause", "3");
        let control = ControlPlane::start(&control).await?;
        Ok(Self { nodes: Vec::new(), control, registry, registry_url, network })
    }

    /// One with so many nodes, `node-1` …, and with the controllers.
    async fn with_nodes(count: usize) -> Result<Self> {
        let mut site = Self::new().await?;
        site.control.run_controllers()?;
        for number in 1..=count {
            let host = site.network.host(None)?;
            site.join(&host, &format!("node-{number}")).await?;
        }
        Ok(site)
    }

    async fn join(&mut self, host: &Host, name: &str) -> Result<()> {
        let node = Joining { name, release: Release::Newest, registry: &self.registry_url, name_server: None };
        self.nodes.push(KubernetesNode::join(&self.control, host, node).await?);
        Ok(())
    }

    /// Waits until `probe` is content with what is at a path of the apiserver.
    async fn until(&self, what: &str, path: &str, probe: impl Fn(&Value) -> bool) -> Result<Value> {
        let api = self.control.api();
        until(what, SOON, async || api.find(path).await.ok().flatten().filter(|value| probe(value))).await
    }
}
