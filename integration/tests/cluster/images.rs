//! What runs anywhere, as every node says of itself.

use std::time::Duration;

use anyhow::{Context, ensure};
use larder_integration::{Image, Labels, Release, until};
use serde_json::Value;

use super::{NAME, Stage};
use crate::support::run;

#[test]
fn every_node_is_asked_what_it_runs() {
    run(async {
        let stage = Stage::with(&Image::runnable(9)?, None)?;
        let mut cluster = stage.nodes(2, None)?.with_containerd(Release::Bookworm).start().await?;
        let there = cluster.member(1).containerd.as_ref().context("no containerd")?;
        there.pull(NAME).await?;
        there.run(NAME, &Labels::of_container("shop", "web-0", "app")).await?;

        let agent = &cluster.member(0).agent;
        let seen = async || {
            let json: Value =
                serde_json::from_str(&agent.say(&["images", "--cluster", "-o", "json"]).await.ok()?).ok()?;
            let image = json["images"].as_array()?.iter().find(|image| image["name"] == NAME)?.clone();
            (image["nodes"].as_array()?.len() == 1 && json["cluster"]["nodes"] == 2).then_some(image)
        };
        until("what the other runs is shown", Duration::from_secs(20), seen).await?;
        let table = agent.say(&["images", "--cluster"]).await?;
        ensure!(table.contains(NAME) && table.contains("   1 node   "), "{table}");
        ensure!(!agent.say(&["images"]).await.unwrap_or_default().contains("shop/web-0"), "it runs elsewhere");

        // Part of an answer is said to be that.
        cluster.member_mut(1).agent.freeze()?;
        let partial = cluster.member(0).agent.command(&["images", "--cluster"]).await?;
        let said = String::from_utf8_lossy(&partial.stderr).into_owned();
        ensure!(partial.status.success() && said.contains("this is what 1 of 2 nodes say"), "{said}");
        Ok(())
    });
}
