//! The DaemonSet's Pod, run for real: as rendered, by the containerd that it serves.
#![cfg(renderers)]

mod doctor;
mod install;
mod rights;
mod upgrade;
mod volumes;

use anyhow::Result;
use larder_integration::{DaemonSet, FaultRegistry, Image, Node, share_mounts};

use crate::support::Case;

/// A node without an agent, that trusts `reg.test`; and the DaemonSet of this folder for it.
async fn node(case: Case, registry: &FaultRegistry, folder: &str) -> Result<(Node, DaemonSet)> {
    registry.add(&Image::runnable(90)?, "pause", "3");
    let builder = case.builder()?.registry("reg.test", &registry.url())?.without_agent();
    share_mounts(builder.folder())?;
    let node = builder.start().await?;
    node.containerd.pull("reg.test/pause:3").await?;
    let set = daemon_set(&node, registry, folder).await?;
    Ok((node, set))
}

async fn daemon_set(node: &Node, registry: &FaultRegistry, folder: &str) -> Result<DaemonSet> {
    let mut set = DaemonSet::on(node, folder).await?;
    set.registry("reg.test", &registry.url());
    Ok(set)
}
