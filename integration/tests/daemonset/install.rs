//! Installed, used, removed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{FaultRegistry, Image, Node, Release, listing, until};

use super::{daemon_set, node};
use crate::support::{Case, ensure_only_the_agent_asked, run};

mod it_serves_what_it_has_linked {
    use super::it_serves_what_it_has_linked as scenario;
    use crate::support::each_release;
    each_release! { scenario tls true }
}

/// It enters itself on the host, is pulled through, links what containerd holds across its one mount, and serves it when
/// the registry is gone.
async fn it_serves_what_it_has_linked(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let image = Image::many_layers(1, 3, 1500);
    registry.add(&image, "acme/app", "v1");
    let (node, set) = node(case, &registry, "presets/plain").await?;
    let containerd = &node.containerd;
    let pod = set.start(containerd, "larder-1").await?;
    ensure!(set.probe(containerd, &pod, "livenessProbe").await?);
    let status = std::fs::read_to_string(format!("/proc/{}/status", containerd.process_of(&pod).await?))?;
    for right in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        ensure!(status.contains(right), "not {right}:\n{status}");
    }
    let entry = std::fs::read_to_string(node.hosts_dir().join("reg.test/hosts.toml"))?;
    ensure!(entry.contains(&format!("https://127.0.0.1:{}", set.mirror_port())), "{entry}");

    registry.clear_log();
    let id = containerd.pull("reg.test/acme/app:v1").await?;
    ensure_only_the_agent_asked(&registry)?;
    let (digest, cache) = (&image.largest().digest, containerd.root().join("larder"));
    let kept = cache.join("blobs").join(digest.replace(':', "/"));
    let linked = async || {
        let (ours, theirs) = (kept.metadata().ok()?, containerd.blob(digest).metadata().ok()?);
        (ours.ino() == theirs.ino() && ours.dev() == theirs.dev()).then_some(())
    };
    until("the layer is linked", Duration::from_secs(60), linked).await.with_context(|| pod.log())?;

    registry.refuse();
    containerd.forget("reg.test/acme/app", &id).await?;
    ensure!(!containerd.blob(digest).exists());
    containerd.pull("reg.test/acme/app:v1").await.with_context(|| pod.log())?;
    containerd.end_pod(&pod, set.grace()).await
}

/// What a host's folders are like, containerd's own content left out.
fn seen(node: &Node) -> Result<BTreeMap<PathBuf, String>> {
    let (containerd, kubelet) = (node.folder().join("containerd"), node.folder().join("kubelet"));
    let mut seen = listing(node.folder(), &[&containerd, &kubelet])?;
    for entry in std::fs::read_dir(node.containerd.root())? {
        let path = entry?.path();
        let is_containerds =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"io.containerd."));
        if !is_containerds {
            seen.extend(listing(&path, &[])?);
        }
    }
    Ok(seen)
}

/// The Pod that cleans up takes back every byte, also while the agent's Pod is only about to end.
#[test]
fn it_is_removed_without_a_trace() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let image = Image::many_layers(2, 3, 1500);
        registry.add(&image, "acme/app", "v1");
        let case = Case { release: Release::Sid, tls: true };
        let (node, set) = node(case, &registry, "presets/plain").await?;
        let containerd = &node.containerd;
        let before = seen(&node)?;
        let pod = set.start(containerd, "larder-1").await?;
        containerd.pull("reg.test/acme/app:v1").await?;
        ensure!(seen(&node)?.len() > before.len() + 8, "nothing was installed");

        let clean_up = daemon_set(&node, &registry, "clean-up/plain").await?;
        let cleaning = containerd.start_pod(&clean_up.pod("clean-up-1")?).await?;
        let waits = async || cleaning.log().contains("waiting for its end").then_some(());
        until("it waits for the agent's end", Duration::from_secs(20), waits).await?;
        ensure!(!clean_up.probe(containerd, &cleaning, "readinessProbe").await?);
        ensure!(set.probe(containerd, &pod, "readinessProbe").await?, "the agent goes on");
        containerd.end_pod(&pod, set.grace()).await?;
        let clean = async || clean_up.probe(containerd, &cleaning, "readinessProbe").await.ok()?.then_some(());
        until("the node is clean", Duration::from_secs(30), clean).await.with_context(|| cleaning.log())?;
        containerd.end_pod(&cleaning, clean_up.grace()).await?;
        let after = seen(&node)?;
        let (gone, new): (Vec<_>, Vec<_>) = (
            before.iter().filter(|(path, what)| after.get(*path) != Some(what)).collect(),
            after.iter().filter(|(path, what)| before.get(*path) != Some(what)).collect(),
        );
        ensure!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}\n{}", cleaning.log());
        let id = containerd.pull("reg.test/acme/app:v1").await?;
        containerd.forget("reg.test/acme/app", &id).await?;
        containerd.pull("reg.test/acme/app:v1").await.map(drop)
    });
}
