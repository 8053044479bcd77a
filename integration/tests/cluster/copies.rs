//! `cache.copies`: what runs on one node is whole on others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{Cluster, Image, Labels, Release, until};

use super::{NAME, Stage};
use crate::keep::kept;
use crate::support::run;

/// A node tells what runs every few seconds where it is news, and copies come behind.
const COPIED: Duration = Duration::from_secs(60);

/// That a node is lost is known within seconds, and what others have is looked at every few.
const MADE_GOOD: Duration = Duration::from_secs(75);

/// One node of four runs an image: it becomes whole on two more, and leaves the registry once. When one of these dies, the
/// last one gets it.
#[test]
fn what_runs_is_copied_to_as_many_nodes_as_are_wanted() {
    run(async {
        let image = Image::builder(1).layer(6 << 20).program()?.build();
        let stage = Stage::with(&image, None)?;
        let builder = stage.nodes(4, None)?.with_containerd(Release::Trixie);
        let mut cluster = builder.configure(|_, config| _ = config.set("cache", "copies", "3")).start().await?;
        let containerd = cluster.member(0).containerd.as_ref().context("no containerd")?;
        containerd.pull(NAME).await?;
        containerd.run(NAME, &Labels::of_container("default", "web", "app")).await?;
        until("two other nodes have it", COPIED, async || (holders(&cluster).await.len() == 2).then_some(())).await?;
        ensure!(stage.registry.copies(&image) < 1.1, "{} copies left the registry", stage.registry.copies(&image));
        // It is no accident of the moment, and no more than that.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let held = holders(&cluster).await;
        ensure!(held.len() == 2, "{held:?}");

        cluster.member_mut(held[0]).kill();
        let wanted: Vec<usize> = (1..4).filter(|number| *number != held[0]).collect();
        until("the last one makes it good", MADE_GOOD, async || (holders(&cluster).await == wanted).then_some(()))
            .await?;
        ensure!(stage.registry.copies(&image) < 1.1, "{} copies left the registry", stage.registry.copies(&image));
        Result::<()>::Ok(())
    });
}

/// The nodes that have a whole copy because another one runs it.
async fn holders(cluster: &Cluster) -> Vec<usize> {
    let mut holders = Vec::new();
    for (number, member) in cluster.members().iter().enumerate().skip(1) {
        let known = kept(&member.agent, NAME).await;
        if known.is_some_and(|image| image["why"] == "copy" && image["whole"] == true) {
            holders.push(number);
        }
    }
    holders
}
