//! The agent's Pod sees containerd's folders, in which the host mounts and unmounts all the time: it pins nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use larder_integration::{Disk, FaultRegistry, Image, Node, Pod, Release, until};

use super::node;
use crate::support::{Case, run};

const CASE: Case = Case { release: Release::Sid, tls: true };

/// Volumes: beside containerd's folders, as kubelet has those of Pods; and in each of these.
fn volumes(node: &Node) -> Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for place in ["var/kubelet/pods/1/volumes", "containerd/root/io.test", "containerd/state/io.test"] {
        let mut disk = Disk::small(8)?;
        disk.move_to(&node.folder().join(place).join(rand::random::<u32>().to_string()))?;
        disks.push(disk);
    }
    Ok(disks)
}

/// The host unmounts a volume; whether its device is free then.
async fn comes_free(disk: &Disk) -> Result<bool> {
    disk.unmount()?;
    let free = async || disk.is_free().ok()?.then_some(());
    Ok(until("the device is free", Duration::from_secs(3), free).await.is_ok())
}

#[test]
fn they_come_free() {
    run(async {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::runnable(4)?, "acme/app", "v1");
        let (node, set) = node(CASE, &registry, "presets/plain").await?;
        let containerd = &node.containerd;
        let before = volumes(&node)?;
        let pod = set.start(containerd, "larder-1").await?;
        let after = volumes(&node)?;
        // What a container has is mounted below containerd's state too.
        let image = "reg.test/acme/app:v1".to_owned();
        containerd.pull(&image).await?;
        let (name, logs) = ("other".to_owned(), node.folder().join("kubelet/other"));
        let other = Pod { namespace: "default".to_owned(), name, image, logs, ..Pod::default() };
        let other = containerd.start_pod(&other).await?;

        let process = containerd.process_of(&pod).await?;
        let mounts = || std::fs::read_to_string(format!("/proc/{process}/mountinfo"));
        ensure!(mounts()?.contains("io.test"), "the Pod doesn't follow the host:\n{}", mounts()?);
        ensure!(mounts()?.contains(other.id()), "the other container isn't mounted there:\n{}", mounts()?);
        for disk in before.iter().chain(&after) {
            ensure!(comes_free(disk).await?, "{} is still busy:\n{}", disk.path().display(), mounts()?);
        }
        containerd.end_pod(&other, 1).await?;
        let gone = async || (!mounts().ok()?.contains(other.id())).then_some(());
        let gone = until("the other container's folder is free", Duration::from_secs(10), gone).await;
        gone.with_context(|| mounts().unwrap_or_default())?;
        containerd.end_pod(&pod, set.grace()).await
    });
}

/// What `mountPropagation` is there for.
#[test]
fn without_propagation_they_would_stay_busy() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let (node, set) = node(CASE, &registry, "presets/plain").await?;
        let [beside, inside, _]: [Disk; 3] = volumes(&node)?.try_into().ok().context("three volumes")?;
        let mut pod = set.pod("larder-1")?;
        pod.mounts.iter_mut().for_each(|mount| mount.follows_host = false);
        let pod = node.containerd.start_pod(&pod).await?;
        ensure!(comes_free(&beside).await?, "nothing of kubelet's is in the Pod");
        ensure!(!comes_free(&inside).await?, "it is free without propagation: then the other test shows nothing");
        node.containerd.end_pod(&pod, set.grace()).await
    });
}
