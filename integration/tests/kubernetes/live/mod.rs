//! On a real cluster: what the apiserver takes, and what becomes of it on nodes.

mod admission;
mod kustomize;
mod nodes;
mod releases;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{
    ClusterDns, ControlPlane, FaultRegistry, Image, Joining, KubernetesNode, Network, Release, until,
};
use serde_json::Value;

use super::render::{self, Helm};

/// On two cores that also do other things, a Pod takes seconds to start, and more than a minute to be replaced.
const SOON: Duration = Duration::from_secs(120);

const NAMESPACE: &str = "larder";

/// A cluster: the apiserver and what belongs to it on one machine, a registry on another, nodes on more.
struct Site {
    // Nodes end before what they ask.
    nodes: Vec<KubernetesNode>,
    /// Its DNS, for as long as it isn't down.
    dns: Option<ClusterDns>,
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
        let dns = Some(ClusterDns::start(&dns, control.api())?);
        Ok(Self { nodes: Vec::new(), dns, control, registry, registry_url, network })
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

    /// Runs a Helm in Larder's namespace; returns what it prints, and then what it says besides.
    async fn helm(&self, helm: Helm, arguments: &[&str]) -> Result<String> {
        let arguments = [&["--namespace", NAMESPACE], arguments].concat();
        let output = self.control.command(&helm.program()?, &arguments).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{helm:?} {arguments:?}: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &said)
    }

    /// What is in Larder's namespace, of all kinds that the cluster knows: but for events, which pass by themselves, and
    /// what every namespace is given.
    async fn possessions(&self) -> Result<Vec<String>> {
        let api = self.control.api();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let groups = api.get("/apis").await?;
        let groups = groups["groups"].as_array().into_iter().flatten();
        let groups = groups.map(|group| format!("/apis/{}", text(&group["preferredVersion"]["groupVersion"])));
        let mut found = Vec::new();
        for group in std::iter::once("/api/v1".to_owned()).chain(groups) {
            let kinds = api.get(&group).await?;
            for kind in kinds["resources"].as_array().into_iter().flatten() {
                let is_listed = kind["verbs"].as_array().is_some_and(|verbs| verbs.contains(&"list".into()));
                let name = text(&kind["name"]);
                if !is_listed || kind["namespaced"] != true || name == "events" {
                    continue;
                }
                let items = api.names(&format!("{group}/namespaces/{NAMESPACE}/{name}")).await?;
                found.extend(items.into_iter().map(|(_, item)| format!("{name}/{item}")));
            }
        }
        found.retain(|item| !["configmaps/kube-root-ca.crt", "serviceaccounts/default"].contains(&item.as_str()));
        Ok(found)
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
