//! `cache.copies`: what runs on one node is whole on others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{Image, Labels, Release, until};

use super::{NAME, Stage};
use crate::keep::kept;
use crate::support::run;

/// A node tells what runs every few seconds where it is news, and copies come behind.
const COPIED: Duration = Duration::from_secs(60);

/// One node of four runs an image: it becomes whole on two more, and leaves the registry once.
#[test]
fn what_runs_is_copied_to_as_many_nodes_as_are_wanted() {
    run(async {
        let image = Image::builder(1).layer(6 << 20).program()?.build();
        let stage = Stage::with(&image, None)?;
        let builder = stage.nodes(4, None)?.with_containerd(Release::Trixie);
        let cluster = builder.configure(|_, config| _ = config.set("cache", "copies", "3")).start().await?;
        let containerd = cluster.member(0).containerd.as_ref().context("no containerd")?;
        containerd.pull(NAME).await?;
        containerd.run(NAME, &Labels::of_container("default", "web", "app")).await?;
        let copies = async || -> Option<usize> {
            let mut copies = 0;
            for member in &cluster.members()[1..] {
                let known = kept(&member.agent, NAME).await;
                copies += usize::from(known.is_some_and(|image| image["why"] == "copy" && image["whole"] == true));
            }
            Some(copies)
        };
        until("two other nodes have it", COPIED, async || (copies().await? == 2).then_some(())).await?;
        ensure!(stage.registry.copies(&image) < 1.1, "{} copies left the registry", stage.registry.copies(&image));
        // It is no accident of the moment, and no more than that.
        tokio::time::sleep(Duration::from_secs(5)).await;
        ensure!(copies().await == Some(2), "{:?}", copies().await);
        Result::<()>::Ok(())
    });
}
