//! Releases of the chart, as Helm makes, changes and removes them.

use anyhow::{Context, Result, ensure};
use larder_integration::{LarderImage, objects};
use serde_json::{Value, json};

use super::super::render::Helm;
use super::{NAMESPACE, Site, chart};
use crate::support::run;

const SECRET: &str = "/api/v1/namespaces/larder/secrets/larder-peers-ca";
const DAEMONSET: &str = "/apis/apps/v1/namespaces/larder/daemonsets/larder";

/// What would be permissions, or reach beyond the release.
const KINDS_NOT_MADE: [&str; 7] = [
    "/apis/rbac.authorization.k8s.io/v1/roles",
    "/apis/rbac.authorization.k8s.io/v1/rolebindings",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
];

async fn names(site: &Site, kinds: &[&str]) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for kind in kinds {
        all.extend(site.control.api().names(kind).await?);
    }
    Ok(all)
}

async fn a_release_comes_changes_and_goes(helm: Helm) -> Result<()> {
    let site = Site::new().await?;
    let api = site.control.api();
    let chart = chart();
    let helm = async |arguments: &[&str]| site.helm(helm, arguments).await;
    let before = names(&site, &KINDS_NOT_MADE).await?;

    let notes = helm(&["install", "larder", &chart, "--create-namespace"]).await?;
    // Helm's own namespace has no label, and one is told.
    ensure!(notes.contains("pod-security.kubernetes.io/enforce=privileged"), "{notes}");
    ensure!(notes.contains("Peers are on"), "{notes}");
    ensure!(api.get(DAEMONSET).await?["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 1);
    let secret = api.get(SECRET).await?["data"].clone();
    for key in ["ca.pem", "ca.key"] {
        ensure!(secret[key].as_str().is_some_and(|value| value.len() > 100), "no {key}: {secret}");
    }
    ensure!(names(&site, &KINDS_NOT_MADE).await? == before, "more than the release's own was made");

    // Changed, and back: the agents' CA stays, or they would part.
    helm(&["upgrade", "larder", &chart, "--set", "maxSurge=2", "--set", "config.mirror.stall_timeout=7s"]).await?;
    let changed = api.get(DAEMONSET).await?;
    ensure!(changed["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 2);
    let config = api.get("/api/v1/namespaces/larder/configmaps/larder").await?["data"]["larder.toml"].clone();
    ensure!(config.as_str().is_some_and(|text| text.contains("stall_timeout = \"7s\"")), "{config}");
    ensure!(api.get(SECRET).await?["data"] == secret, "an upgrade has changed the CA");
    // To a newer chart, as the README says: what was set before stays.
    helm(&["upgrade", "larder", &chart, "--reset-then-reuse-values"]).await?;
    ensure!(api.get(DAEMONSET).await?["spec"] == changed["spec"], "what was set before is lost");
    ensure!(api.get(SECRET).await?["data"] == secret, "an upgrade has changed the CA");
    helm(&["rollback", "larder", "1"]).await?;
    let back = api.get(DAEMONSET).await?;
    ensure!(back["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 1);
    ensure!(api.get(SECRET).await?["data"] == secret, "a rollback has changed the CA");
    // The configuration is in the Pods' annotations: it rolls out, there and back.
    let sum = |of: &Value| of["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone();
    ensure!(sum(&changed) != sum(&back) && sum(&back).is_string());

    // Without nodes nobody cleans up.
    ensure!(!site.possessions().await?.is_empty(), "what there is isn't found");
    helm(&["uninstall", "larder", "--no-hooks"]).await?;
    let left = site.possessions().await?;
    ensure!(left.is_empty(), "{left:?} is left");
    Ok(())
}

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn a_release_comes_changes_and_goes_by_helm_4() {
    run(a_release_comes_changes_and_goes(Helm::Four));
}

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn a_release_comes_changes_and_goes_by_helm_3() {
    run(a_release_comes_changes_and_goes(Helm::Three));
}

/// A CA from `larder certs` that was there first is used, and survives the release.
#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn a_ca_of_the_users_own_is_left_alone() {
    run(async {
        let site = Site::new().await?;
        let metadata = json!({ "name": NAMESPACE });
        site.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata })).await?;
        let certs = tokio::process::Command::new(LarderImage::binary().await?)
            .args(["certs", "--kubernetes", "--namespace", NAMESPACE])
            .output()
            .await?;
        ensure!(certs.status.success(), "{}", String::from_utf8_lossy(&certs.stderr));
        let documents = objects(std::str::from_utf8(&certs.stdout)?)?;
        let [secret] = documents.as_slice() else { anyhow::bail!("{} documents", documents.len()) };
        site.apply(secret).await?;
        let data = async || site.control.api().get(SECRET).await.map(|secret| secret["data"].clone());
        let own = data().await?;
        ensure!(own["ca.pem"].is_string() && own["ca.key"].is_string(), "other keys than the agent reads");

        let chart = chart();
        let notes = site.helm(Helm::Four, &["install", "larder", &chart, "--set", "peers.generate=false"]).await?;
        ensure!(notes.contains("Peers are on"), "{notes}");
        ensure!(data().await? == own, "installing has changed it");
        site.helm(Helm::Four, &["upgrade", "larder", &chart]).await?;
        ensure!(data().await? == own, "an upgrade has changed it");
        site.helm(Helm::Four, &["uninstall", "larder", "--no-hooks"]).await?;
        ensure!(data().await.context("it went with the release")? == own);
        Ok(())
    });
}

/// The notes tell who has no peers why that is, and what makes some.
#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn the_notes_say_why_peers_are_off() {
    run(async {
        let site = Site::new().await?;
        let chart = chart();
        let set = async |how: &[&str], values: &str| {
            site.helm(Helm::Four, &[how, &["larder", &chart, "--reset-values", "--set", values]].concat()).await
        };
        let ensure_is_told = |notes: &str, told: &[&str]| {
            let missing: Vec<_> = told.iter().filter(|told| !notes.contains(*told)).collect();
            ensure!(missing.is_empty() && !notes.contains("Peers are on"), "{missing:?}: {notes}");
            // Whoever looks for a NetworkPolicy that would protect the agents, or let them through.
            ensure!(notes.contains("NetworkPolicies don't reach the agents"), "{notes}");
            Ok(())
        };

        let install = ["upgrade", "--install", "--create-namespace"];
        let notes = set(&install, "peers.generate=false,peers.secret=ours").await?;
        let command = "larder certs --kubernetes --namespace larder --name ours | kubectl apply --server-side -f -";
        ensure_is_told(&notes, &["Peers are off until there is a CA", command])?;
        let secrets = site.control.api().names("/api/v1/namespaces/larder/secrets").await?;
        ensure!(secrets.iter().all(|(_, name)| name.starts_with("sh.helm.release")), "{secrets:?}");

        // Nobody is told to make a CA that isn't read.
        let notes = set(&["upgrade"], "peers.enabled=false,config.metrics.listen=0.0.0.0:7542").await?;
        ensure_is_told(&notes, &["Peers are off (`peers.enabled`)"])?;
        ensure!(!notes.contains("larder certs"), "{notes}");
        ensure!(notes.contains("Prometheus reads 7542"), "another port than the agent's: {notes}");
        Ok(())
    });
}
