//! The agent's Pod sees containerd's folders, in which the host mounts and unmounts all the time: it pins nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{FaultRegistry, Image, Release, SmallDisk, until};

use super::node;
use crate::support::{Case, run};

#[test]
fn they_come_free() {
    run(async {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::runnable(4)?, "acme/app", "v1");
        let case = Case { release: Release::Sid, tls: true };
        let (node, set) = node(case, &registry, "presets/plain").await?;
        let containerd = &node.containerd;
        // Beside containerd's folders, as kubelet has the volumes of Pods; and in each of these.
        let places = ["var/kubelet/pods/1/volumes/a", "containerd/root/io.test/b", "containerd/state/io.test/rootfs"];
        let disks = || -> Result<Vec<SmallDisk>> {
            let mut disks = Vec::new();
            for (n, place) in places.iter().enumerate() {
                let mut disk = SmallDisk::new(8)?;
                disk.move_to(&node.folder().join(place).join(format!("{n}-{}", rand::random::<u32>())))?;
                disks.push(disk);
            }
            Ok(disks)
        };
        let before = disks()?;
        let pod = set.start(containerd, "larder-1").await?;
        let after = disks()?;
        // What a container has is mounted below containerd's state too.
        containerd.pull("reg.test/acme/app:v1").await?;
        let other = containerd.run_pod("default", "other", "reg.test/acme/app:v1").await?;

        let process = containerd.process_of(&pod).await?;
        let mounts = || std::fs::read_to_string(format!("/proc/{process}/mountinfo"));
        ensure!(mounts()?.contains("io.test"), "the Pod doesn't follow the host:\n{}", mounts()?);
        ensure!(mounts()?.contains(&other), "the other container isn't mounted there:\n{}", mounts()?);
        for disk in before.iter().chain(&after) {
            disk.unmount()?;
            let free = async || disk.is_free().ok()?.then_some(());
            let what = format!("{} is free", disk.path().display());
            until(&what, Duration::from_secs(5), free).await.with_context(|| mounts().unwrap_or_default())?;
        }
        containerd.stop(&other).await?;
        let gone = async || (!mounts().ok()?.contains(&other)).then_some(());
        until("the other container's folder is free", Duration::from_secs(10), gone)
            .await
            .with_context(|| mounts().unwrap_or_default())?;
        containerd.end_pod(&pod, set.grace()).await
    });
}
