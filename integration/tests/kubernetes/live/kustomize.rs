//! By kustomize, in the order in which its page tells it.

use anyhow::{Context as _, Result, bail, ensure};
use larder_integration::{Image, LarderImage, Request, kustomize, listing, objects};
use serde_json::{Value, json};

use super::super::render::object;
use super::Site;
use super::nodes::{PODS, ensure_only_agents_pulled, on_two_nodes};

/// Applied without a CA, pulled through, given one, deleted, cleaned up after.
async fn life(site: &Site) -> Result<()> {
    let [first, second] = site.nodes.as_slice() else { bail!("two nodes") };
    for (seed, name) in [(1, "app"), (2, "other")] {
        site.registry.add(&Image::runnable(seed)?, &format!("acme/{name}"), "v1");
    }
    let mut before = Vec::new();
    for node in &site.nodes {
        node.ctr(&["images", "import", &LarderImage::shared().await?.archive().display().to_string()]).await?;
        before.push(listing(&node.hosts_dir(), &[])?);
    }
    let is_everywhere = |daemonset: &Value| {
        let status = &daemonset["status"];
        status["observedGeneration"] == daemonset["metadata"]["generation"]
            && ["desiredNumberScheduled", "numberReady", "updatedNumberScheduled"]
                .iter()
                .all(|count| status[count] == 2)
    };
    let daemonsets = "/apis/apps/v1/namespaces/larder/daemonsets";

    let (mut agents, cleaners) = (kustomize("presets/plain")?, kustomize("clean-up/plain")?);
    let mut daemonset = object(&agents, "DaemonSet", "larder")?.clone();
    daemonset["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array_mut()
        .context("no variables")?
        .push(json!({ "name": "LARDER__CACHE__MAX_DISK_PERCENT", "value": "99" }));
    agents.retain(|document| document["kind"] != "DaemonSet");
    agents.push(daemonset.clone());
    for document in &agents {
        site.apply(document).await?;
    }
    site.until("the agent is ready", &format!("{daemonsets}/larder"), is_everywhere).await?;
    let said = site.logs();
    ensure!(
        said.contains("no peers: each blob comes from upstream") && said.contains("/etc/larder-peers/ca.pem"),
        "{said}"
    );
    site.run_pod(first, "app", "reg.test/acme/app:v1").await?;
    ensure_only_agents_pulled(site)?;

    // With a CA, and started anew, they find each other by the cluster's DNS, at the address that it has by convention.
    let certs = tokio::process::Command::new(LarderImage::binary().await?).args(["certs", "--kubernetes"]).output();
    let certs = objects(std::str::from_utf8(&certs.await?.stdout)?)?;
    for secret in &certs {
        site.apply(secret).await?;
    }
    daemonset["spec"]["template"]["metadata"]["annotations"] = json!({ "kubectl.kubernetes.io/restartedAt": "now" });
    site.apply(&daemonset).await?;
    site.until("the agents are started anew", &format!("{daemonsets}/larder"), is_everywhere).await?;
    site.until_acquainted().await?;
    site.run_pod(first, "other", "reg.test/acme/other:v1").await?;
    let is_of_other = |request: &&Request| request.path().contains("/acme/other/blobs/");
    let downloads = || site.registry.requests().iter().filter(is_of_other).count();
    let downloaded = downloads();
    site.run_pod(second, "other-too", "reg.test/acme/other:v1").await?;
    ensure!(downloads() == downloaded && downloaded > 0, "the second node has downloaded for itself");
    ensure_only_agents_pulled(site)?;

    let api = site.control.api();
    for document in agents.iter().filter(|document| document["kind"] != "Namespace") {
        api.delete(&api.path_of(document).await?).await?;
    }
    site.until("the agent is gone", PODS, |pods| pods["items"].as_array().is_some_and(Vec::is_empty)).await?;
    for (node, before) in site.nodes.iter().zip(&before) {
        ensure!(listing(&node.hosts_dir(), &[])? != *before, "an agent that ends has taken itself back");
    }
    for document in &cleaners {
        site.apply(document).await?;
    }
    site.until("the nodes are clean", &format!("{daemonsets}/larder-clean-up"), is_everywhere).await?;
    for (node, before) in site.nodes.iter().zip(&before) {
        ensure!(listing(&node.hosts_dir(), &[])? == *before, "{} isn't as it was", node.name());
        ensure!(!node.machine().path("/var/lib/containerd/larder").exists(), "the cache is left");
    }
    Ok(())
}

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn larder_is_applied_and_cleaned_up_after_by_kustomize() {
    on_two_nodes(async |site| life(site).await);
}
