//! On a real cluster: what the apiserver takes, and what becomes of it on nodes.

mod admission;
mod nodes;
mod releases;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{
    ClusterDns, ControlPlane, FaultRegistry, Image, Joining, KubernetesNode, Network, Release, tool, until,
};
use serde_json::Value;

use super::render;

/// On two cores that also do other things, a Pod takes seconds to start, and more than a minute to be replaced.
const SOON: Duration = Duration::from_secs(120);

const NAMESPACE: &str = "larder";

/// A cluster: the apiserver and what belongs to it on one machine, a registry on another, nodes on more.
struct Site {
    // Nodes end before what they ask.
    nodes: Vec<KubernetesNode>,
    _dns: ClusterDns,
    control: ControlPlane,
    registry: FaultRegistry,
    registry_url: String,
    network: Network,
}

impl Site {
    /// One without nodes and controllers: documents are taken, and nothing comes of them.
    async fn new() -> Result<Self> {
        let network = Network::new()?;
        let (control, registry, dns) = (network.host(None)?, network.host(None)?, network.host(None)?);
        let registry_url = format!("http://{}", registry.address());
        let registry = FaultRegistry::start_on(&registry)?;
        registry.add(&Image::runnable(3)?, "pause", "3");
        let control = ControlPlane::start(&control).await?;
        let dns = ClusterDns::start(&dns, control.api())?;
        Ok(Self { nodes: Vec::new(), _dns: dns, control, registry, registry_url, network })
    }

    /// One with so many nodes, `node-1` …, and with the controllers.
    async fn with_nodes(count: usize) -> Result<Self> {
        let mut site = Self::new().await?;
        site.control.run_controllers()?;
        for number in 1..=count {
            let name = format!("node-{number}");
            let node = Joining { name: &name, release: Release::Newest, registry: &site.registry_url };
            let host = site.network.host(None)?;
            site.nodes.push(KubernetesNode::join(&site.control, &host, node).await?);
        }
        Ok(site)
    }

    /// Waits until `probe` is content with what is at a path of the apiserver.
    async fn until(&self, what: &str, path: &str, probe: impl Fn(&Value) -> bool) -> Result<Value> {
        let api = self.control.api();
        until(what, SOON, async || api.find(path).await.ok().flatten().filter(|value| probe(value))).await
    }

    /// Runs a program that goes by the cluster's kubeconfig; returns what it prints, and then what it says besides.
    async fn say(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        let output = self.control.command(program, arguments).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {arguments:?}: {}", program.display(), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &said)
    }

    /// Runs Helm 4 in Larder's namespace.
    async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.say(&tool("helm/usr/bin/helm")?, &[&["--namespace", NAMESPACE], arguments].concat()).await
    }

    /// Applies a document, which has to be taken.
    async fn apply(&self, document: &Value) -> Result<Value> {
        let taken = self.control.api().apply(document).await?;
        taken.with_context(|| format!("{} {}", document["kind"], document["metadata"]["name"]))
    }
}

/// The chart's folder, for Helm.
fn chart() -> String {
    render::chart().to_string_lossy().into_owned()
}
