//! The agent is killed in the middle of a blob.

use std::time::Duration;

use anyhow::{Result, ensure};
use larder_integration::{Fault, FaultRegistry, Image, Node, When, until};

use crate::support::{Case, on_every_containerd};

on_every_containerd!(killed_in_mid_blob_it_goes_on_where_it_was);
on_every_containerd!(over tls: a_pull_that_is_given_up_goes_on, killed_again_and_again_it_serves_only_what_is_right);

const MEBIBYTE: u64 = 1 << 20;

/// Pulls again, as kubelet does, until it succeeds.
async fn pull_at_last(node: &Node, image: &str) -> Result<()> {
    until("the pull succeeds", Duration::from_secs(40), async || node.containerd.pull(image).await.ok()).await?;
    Ok(())
}

async fn killed_in_mid_blob_it_goes_on_where_it_was(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(1, 48);
    registry.add(&image, "acme/app", "v1");
    registry.fault(When::get(image.largest()), Fault::Trickle(24 * MEBIBYTE));
    let mut node = case.node_of_the_agent_alone(&registry).await?;
    let digest = &image.largest().digest;
    let kill = async {
        let most = async || (registry.sent(digest) > 30 * MEBIBYTE).then_some(());
        until("most of it has arrived", Duration::from_secs(30), most).await
    };
    let agent = node.agent.as_mut().unwrap();
    let containerd = &node.containerd;
    let (killed, _) = tokio::join!(
        async {
            kill.await?;
            agent.kill();
            agent.start_again().await
        },
        containerd.pull("reg.test/acme/app:v1"),
    );
    killed?;
    pull_at_last(&node, "reg.test/acme/app:v1").await?;
    let (sent, length) = (registry.sent(digest), image.largest().bytes.len() as u64);
    ensure!(sent <= length + 8 * MEBIBYTE, "{} MiB were fetched twice", (sent - length) / MEBIBYTE);
    Ok(())
}

/// Who asked has gone; what is far along arrives all the same.
async fn a_pull_that_is_given_up_goes_on(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(2, 24);
    registry.add(&image, "acme/app", "v1");
    registry.fault(When::get(image.largest()), Fault::Trickle(12 * MEBIBYTE));
    let mut node = case.node_of_the_agent_alone(&registry).await?;
    let digest = &image.largest().digest;
    let (containerd, most) = (&node.containerd, async || (registry.sent(digest) > 20 * MEBIBYTE).then_some(()));
    tokio::select! {
        _ = containerd.pull("reg.test/acme/app:v1") => anyhow::bail!("the pull has ended too soon"),
        arrived = until("most of it has arrived", Duration::from_secs(30), most) => arrived?,
    }
    node.containerd.kill();
    let length = image.largest().bytes.len() as u64;
    let all = async || (registry.sent(digest) >= length).then_some(());
    until("the rest arrives", Duration::from_secs(20), all).await?;
    node.containerd.start_again().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    let sent = registry.sent(digest);
    ensure!(sent <= length + 2 * MEBIBYTE, "{} MiB were fetched twice", (sent - length) / MEBIBYTE);
    Ok(())
}

/// Killed at instants that differ each time. What it serves in the end is what was pushed.
async fn killed_again_and_again_it_serves_only_what_is_right(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::many_layers(3, 8, 3000);
    registry.add(&image, "acme/app", "v1");
    registry.fault(When::path("/blobs/"), Fault::Trickle(6 * MEBIBYTE));
    let mut node = case.node_of_the_agent_alone(&registry).await?;
    let agent = node.agent.as_mut().unwrap();
    for round in 0..6 {
        let before = registry.sent("/blobs/");
        let some = async || (registry.sent("/blobs/") > before + (1 + 700 * round) * 1000).then_some(());
        tokio::select! {
            _ = node.containerd.pull("reg.test/acme/app:v1") => {}
            arrived = until("some of it arrives", Duration::from_secs(20), some) => arrived?,
        }
        agent.kill();
        agent.start_again().await?;
    }
    registry.heal();
    pull_at_last(&node, "reg.test/acme/app:v1").await?;
    for blob in image.blobs() {
        let agent = node.agent()?;
        let url = format!("{}/v2/acme/app/blobs/{}?ns=reg.test", agent.mirror(), blob.digest);
        ensure!(agent.http().get(&url).await?.body == blob.bytes);
    }
    Ok(())
}
