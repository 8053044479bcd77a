//! What becomes of Larder on nodes: installed, pulled through, upgraded under load, and removed without a trace.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use larder_integration::{Fault, Http, Image, KubernetesNode, LarderImage, Metrics, Request, When, listing, until};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::render::Helm;
use super::{SOON, Site, chart};
use crate::support::{asked_by_agent, run_within};

/// Two nodes start, an agent on each is started, replaced, and removed.
const LIMIT: Duration = Duration::from_secs(400);

/// The machine's own disk may be fuller than a node's should be, on which less is kept.
const ROOM: [&str; 2] = ["--set", "config.cache.max_disk_percent=99"];

pub(super) const PODS: &str = "/api/v1/namespaces/larder/pods";

/// A Pod of that name, on that node, of an image.
fn pod(name: &str, node: &KubernetesNode, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "nodeName": node.name(),
            "automountServiceAccountToken": false,
            "containers": [{ "name": name, "image": image }],
            // A program that is the first of its Pod doesn't end by being told to.
            "terminationGracePeriodSeconds": 0,
        },
    })
}

impl Site {
    /// Runs an image of the registry as a Pod of that name on a node, and waits until it does.
    pub(super) async fn run_pod(&self, node: &KubernetesNode, name: &str, image: &str) -> Result<()> {
        // Pods are refused until the controllers have made the namespace's account.
        self.until("an account", "/api/v1/namespaces/default/serviceaccounts/default", |_| true).await?;
        self.apply(&pod(name, node, image)).await?;
        let is_running = |pod: &Value| pod["status"]["phase"] == "Running";
        self.until("the Pod runs", &format!("/api/v1/namespaces/default/pods/{name}"), is_running).await.map(drop)
    }

    /// The names of the agents' Pods that are ready.
    async fn agents(&self) -> Result<Vec<String>> {
        let pods = self.control.api().list(PODS).await?;
        let is_ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
            ready.any(|condition| condition["status"] == "True") && pod["metadata"]["deletionTimestamp"].is_null()
        };
        Ok(pods.iter().filter(is_ready).filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect())
    }

    /// Waits until each node's agent knows the other's.
    pub(super) async fn until_acquainted(&self) -> Result<()> {
        for node in &self.nodes {
            until("the nodes know each other", SOON, async || {
                let settled = metrics(node).await.ok()?.sum("larder_peer_members", &["state=\"settled\""]);
                (settled == 2.0).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// Runs one new image of these after the other on a node until told to stop, each with 2 s of downloading; how many.
    async fn keep_pulling(&self, node: &KubernetesNode, seeds: Range<u64>, stop: CancellationToken) -> Result<usize> {
        let mut pulled = 0;
        for seed in seeds {
            if stop.is_cancelled() {
                break;
            }
            let (name, image) = (format!("during-{seed}"), Image::builder(seed).layer(4 << 20).program()?.build());
            self.registry.fault(When::get(image.largest()), Fault::Trickle(2 << 20));
            self.registry.add(&image, &format!("acme/{name}"), "v1");
            self.run_pod(node, &name, &format!("reg.test/acme/{name}:v1")).await?;
            pulled += 1;
        }
        ensure!(stop.is_cancelled(), "{pulled} images are too few");
        Ok(pulled)
    }

    /// What Larder's containers have written, on every node.
    pub(super) fn logs(&self) -> String {
        self.nodes.iter().map(|node| node.logs_of("larder")).collect()
    }
}

/// What a node shows to Prometheus.
async fn metrics(node: &KubernetesNode) -> Result<Metrics> {
    let http = Http::within(Some(node.machine().host().namespace().clone()));
    let reply = http.get("http://127.0.0.1:7442/metrics").await?;
    Metrics::parse(std::str::from_utf8(&reply.body)?)
}

/// Fails when a node's containerd has gone past its agent.
pub(super) fn ensure_only_agents_pulled(site: &Site) -> Result<()> {
    let requests = site.registry.requests();
    let past = requests.iter().find(|request| request.path().contains("/acme/") && !asked_by_agent(request));
    ensure!(past.is_none(), "containerd went past the agent: {past:?}");
    Ok(())
}

/// How often a node's mirror was asked until told to stop, and each time that it didn't answer.
async fn knock(node: &KubernetesNode, stop: CancellationToken) -> (usize, Vec<String>) {
    let (mut asked, mut unanswered) = (0, Vec::new());
    while !stop.is_cancelled() {
        // A connection of its own for each, as after a pause.
        let http = Http::within(Some(node.machine().host().namespace().clone()));
        let reply = http.send(Method::GET, "http://127.0.0.1:7439/v2/", &[], Bytes::new());
        match tokio::time::timeout(Duration::from_secs(5), reply).await {
            Ok(Ok(reply)) if reply.status == 200 => {}
            other => unanswered.push(format!("{other:?}")),
        }
        asked += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (asked, unanswered)
}

/// The whole life of an installation on two nodes.
async fn life(site: &Site) -> Result<()> {
    let [first, second] = site.nodes.as_slice() else { anyhow::bail!("two nodes") };
    let registry = &site.registry;
    for (seed, name) in [(1, "app"), (2, "other"), (4, "after")] {
        registry.add(&Image::runnable(seed)?, &format!("acme/{name}"), "v1");
    }
    // The default name of the image, so that the chart is installed as it is.
    let image = LarderImage::shared().await?.archive().display().to_string();
    let mut before = Vec::new();
    for node in &site.nodes {
        node.ctr(&["images", "import", &image]).await?;
        before.push(listing(&node.hosts_dir(), &[])?);
    }

    // Installed.
    let chart = chart();
    let waited = ["larder", &chart, "--wait", "--timeout", "110s", ROOM[0], ROOM[1]];
    site.helm(Helm::Four, &[&["install", "--create-namespace"], waited.as_slice()].concat()).await?;
    ensure!(site.agents().await?.len() == 2, "agents: {:?}", site.agents().await?);
    for node in &site.nodes {
        for registry in ["_default", "reg.test"] {
            let hosts = std::fs::read_to_string(node.hosts_dir().join(registry).join("hosts.toml"))?;
            ensure!(hosts.contains("127.0.0.1:7439"), "{}: {registry}: {hosts}", node.name());
        }
    }
    // Each has found the other by the cluster's DNS, and both believe the chart's authority.
    site.until_acquainted().await?;

    // Pulled through: one download for both nodes, and nobody but agents downloads.
    site.run_pod(first, "app", "reg.test/acme/app:v1").await?;
    let blobs = || registry.requests().iter().filter(|request| request.path().contains("/acme/app/blobs/")).count();
    let downloads = blobs();
    ensure!(downloads > 0);
    site.run_pod(second, "app-too", "reg.test/acme/app:v1").await?;
    ensure!(blobs() == downloads, "{} more downloads for the second node", blobs() - downloads);
    ensure_only_agents_pulled(site)?;

    // Upgraded: each node's mirror answers all the time, and images are pulled all the time, through the agents alone.
    let agents = site.agents().await?;
    let stop = CancellationToken::new();
    let upgrade = async {
        let changed = [&["upgrade", "--set", "config.log.level=debug"], waited.as_slice()].concat();
        let upgraded = site.helm(Helm::Four, &changed).await;
        stop.cancel();
        upgraded
    };
    let (upgraded, pulled, pulled_too, knocked, knocked_too) = tokio::join!(
        upgrade,
        site.keep_pulling(first, 100..200, stop.clone()),
        site.keep_pulling(second, 200..300, stop.clone()),
        knock(first, stop.clone()),
        knock(second, stop.clone()),
    );
    upgraded?;
    for pulled in [pulled?, pulled_too?] {
        ensure!(pulled > 0);
        println!("{pulled} images were pulled meanwhile");
    }
    ensure_only_agents_pulled(site)?;
    for (asked, unanswered) in [knocked, knocked_too] {
        ensure!(unanswered.is_empty(), "{} of {asked} unanswered: {:?}", unanswered.len(), unanswered.first());
        ensure!(asked > 50, "asked {asked} times only");
    }
    let replaced = site.agents().await?;
    ensure!(replaced.len() == 2 && replaced.iter().all(|agent| !agents.contains(agent)), "{agents:?} {replaced:?}");

    // Moved to another port, which no agent can hand over: it rolls out all the same.
    let moved = [&["upgrade", "--set", "config.mirror.listen=127.0.0.1:7449"], waited.as_slice()].concat();
    site.helm(Helm::Four, &moved).await?;
    for node in &site.nodes {
        until("the new port is named", SOON, async || {
            let hosts = std::fs::read_to_string(node.hosts_dir().join("_default/hosts.toml")).ok()?;
            (hosts.contains("127.0.0.1:7449") && !hosts.contains(":7439")).then_some(())
        })
        .await?;
    }
    site.run_pod(second, "other", "reg.test/acme/other:v1").await?;
    ensure_only_agents_pulled(site)?;

    // Removed: Helm comes back when every node is as it was.
    let said = site.helm(Helm::Four, &["uninstall", "larder", "--wait", "--timeout", "110s"]).await?;
    ensure!(said.contains("2 of 2 nodes are clean"), "Helm doesn't show what was waited for: {said}");
    for (node, before) in site.nodes.iter().zip(&before) {
        let after = listing(&node.hosts_dir(), &[])?;
        ensure!(after == *before, "{}: {:?} became {:?}: {said}", node.name(), before.keys(), after.keys());
        let cache = node.machine().path("/var/lib/containerd/larder");
        ensure!(!cache.exists(), "{}: the cache is left: {said}", node.name());
    }
    // Pods and what is made for Services go a moment after what they belong to.
    let nothing =
        until("nothing is left", SOON, async || site.possessions().await.ok()?.is_empty().then_some(())).await;
    if nothing.is_err() {
        anyhow::bail!("left in the namespace: {:?}", site.possessions().await?);
    }
    site.run_pod(first, "after", "reg.test/acme/after:v1").await
}

/// Runs it in a cluster of two nodes, whose logs are shown where it fails.
pub(super) fn on_two_nodes(life: impl AsyncFnOnce(&mut Site) -> Result<()>) {
    run_within(LIMIT, async {
        let mut site = Site::with_nodes(2).await?;
        let lived = life(&mut site).await;
        if lived.is_err() {
            println!("{}", site.logs());
        }
        lived
    });
}

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn larder_is_installed_upgraded_and_removed() {
    on_two_nodes(async |site| life(site).await);
}

/// The cluster's DNS is down, and all agents are started anew: they know each other still, and serve.
async fn life_without_dns(site: &mut Site) -> Result<()> {
    site.registry.add(&Image::runnable(1)?, "acme/app", "v1");
    for node in &site.nodes {
        node.ctr(&["images", "import", &LarderImage::shared().await?.archive().display().to_string()]).await?;
    }
    let chart = chart();
    let install = ["install", "larder", &chart, "--create-namespace", "--wait", "--timeout", "110s", ROOM[0], ROOM[1]];
    site.helm(Helm::Four, &install).await?;
    site.until_acquainted().await?;
    // The resolver that each has been given: there are no other Pods yet.
    for node in &site.nodes {
        let folder = node.machine().path("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes");
        let resolvers: Vec<String> = std::fs::read_dir(&folder)?
            .map(|sandbox| Ok(std::fs::read_to_string(sandbox?.path().join("resolv.conf"))?))
            .collect::<Result<_>>()?;
        ensure!(!resolvers.is_empty() && !resolvers.concat().contains("10.96.0.10"), "{resolvers:?}");
    }

    site.dns = None;
    let agents = site.agents().await?;
    for agent in &agents {
        site.control.api().delete(&format!("{PODS}/{agent}")).await?;
    }
    until("new agents are ready", SOON, async || {
        let ready = site.agents().await.ok()?;
        (ready.len() == 2 && ready.iter().all(|agent| !agents.contains(agent))).then_some(())
    })
    .await?;
    site.until_acquainted().await?;
    let [first, second] = site.nodes.as_slice() else { anyhow::bail!("two nodes") };
    site.run_pod(first, "app", "reg.test/acme/app:v1").await?;
    let is_of_app = |request: &&Request| request.path().contains("/acme/app/blobs/");
    let downloads = || site.registry.requests().iter().filter(is_of_app).count();
    let before = downloads();
    ensure!(before > 0);
    site.run_pod(second, "app-too", "reg.test/acme/app:v1").await?;
    ensure!(downloads() == before, "the second node has downloaded for itself");
    ensure_only_agents_pulled(site)
}

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn agents_start_and_serve_while_the_clusters_dns_is_down() {
    on_two_nodes(life_without_dns);
}

/// One of two nodes is down while Larder is removed: it keeps what works without an agent, and is put back by hand. All by
/// Helm 3.
async fn life_without_a_node(site: &mut Site) -> Result<()> {
    site.registry.add(&Image::runnable(1)?, "acme/app", "v1");
    let image = LarderImage::shared().await?.archive().display().to_string();
    let mut before = Vec::new();
    for node in &site.nodes {
        node.ctr(&["images", "import", &image]).await?;
        before.push(listing(&node.hosts_dir(), &[])?);
    }
    let install =
        ["install", "larder", &chart(), "--create-namespace", "--wait", "--timeout", "110s", ROOM[0], ROOM[1]];
    site.helm(Helm::Three, &install).await?;
    let installed = listing(&site.nodes[1].hosts_dir(), &[])?;
    ensure!(installed != before[1], "nothing is installed");

    site.nodes[1].power_off();
    let is_given_up = |node: &Value| {
        let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
        taints.any(|taint| taint["key"] == "node.kubernetes.io/unreachable" && taint["effect"] == "NoExecute")
    };
    site.until("the cluster gives it up", "/api/v1/nodes/node-2", is_given_up).await?;
    // What waits for the others is given to a node by the scheduler, which would rather take the one with more to spare.
    let mut busy = pod("busy", &site.nodes[0], "reg.test/pause:3");
    busy["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "1", "memory": "500Mi" } });
    site.apply(&busy).await?;
    let said = site.helm(Helm::Three, &["uninstall", "larder", "--timeout", "110s"]).await?;
    ensure!(said.contains("1 of 1 nodes are clean"), "Helm doesn't show what was waited for: {said}");
    ensure!(listing(&site.nodes[0].hosts_dir(), &[])? == before[0], "the other node isn't clean: {said}");
    ensure!(listing(&site.nodes[1].hosts_dir(), &[])? == installed);

    // Back, it pulls past the agent that isn't there.
    site.nodes[1].power_on(&site.control).await?;
    site.until("the agent is gone", PODS, |pods| pods["items"].as_array().is_some_and(Vec::is_empty)).await?;
    ensure!(listing(&site.nodes[1].hosts_dir(), &[])? == installed);
    let node = &site.nodes[1];
    site.registry.clear_log();
    site.run_pod(node, "app", "reg.test/acme/app:v1").await?;
    ensure!(!site.registry.requests().iter().any(asked_by_agent), "an agent is left");
    let config = node.machine().path("/etc/larder.toml");
    std::fs::write(config, "[cache]\ndir = \"/var/lib/containerd/larder\"\n")?;
    let larder = LarderImage::binary().await?;
    let output = node.machine().run(&larder, &["uninstall", "--config", "/etc/larder.toml"]).await?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(listing(&node.hosts_dir(), &[])? == before[1], "{output:?}");
    ensure!(!node.machine().path("/var/lib/containerd/larder").exists(), "{output:?}");
    Ok(())
}

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn a_node_that_is_down_keeps_what_works_without_larder() {
    on_two_nodes(life_without_a_node);
}
