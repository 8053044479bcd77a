//! The agent is killed in the middle of a blob.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use larder_integration::{Agent, Blob, Fault, FaultRegistry, Image, Namespace, Node, When, until};

use crate::support::{Case, on_every_containerd};

on_every_containerd!(killed_in_mid_blob_it_goes_on_where_it_was);
on_every_containerd!(
    over tls: killed_anywhere_it_fetches_little_twice,
    a_pull_that_is_given_up_goes_on,
    killed_again_and_again_it_serves_only_what_is_right,
);

const MEBIBYTE: u64 = 1 << 20;
/// The most of a blob that upstream sends twice when the agent is killed: of each part that is fetched, the chunk under way.
const MOST_TWICE: u64 = 8 * MEBIBYTE;
/// The most that the kernel holds of one connection: what upstream has sent, and the agent hasn't read when it is killed.
/// No program can know that, and by itself the kernel would hold some MiB where the agent is short of CPU. So there is room
/// for this much at the agent's end, and for a fixture's send buffer at the other.
const RECEIVE_BUFFER: u64 = 256 << 10;
const SEND_BUFFER: u64 = 128 << 10;

/// Pulls again, as kubelet does, until it succeeds.
async fn pull_at_last(node: &Node, image: &str) -> Result<()> {
    until("the pull succeeds", Duration::from_secs(40), async || node.containerd.pull(image).await.ok()).await?;
    Ok(())
}

/// What lies on its disk isn't received again: all of it, but for a chunk of which it wasn't noted yet that it is whole. What
/// the kernels have under way when it is killed is lost, and may be some MiB where the agent is short of CPU.
async fn killed_in_mid_blob_it_goes_on_where_it_was(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(1, 48);
    registry.add(&image, "acme/app", "v1");
    registry.fault(When::get(image.largest()), Fault::Trickle(24 * MEBIBYTE));
    let mut node = case.node_of_the_agent_alone(&registry).await?;
    let layer = image.largest();
    let agent = node.agent.as_mut().unwrap();
    let containerd = &node.containerd;
    let (on_disk, _) = tokio::join!(
        async {
            let most = async || (whole_chunks(agent, layer) >= 28).then_some(());
            until("most of it has arrived", Duration::from_secs(30), most).await?;
            agent.kill();
            let on_disk = whole_chunks(agent, layer);
            agent.start_again().await?;
            anyhow::Ok(on_disk)
        },
        containerd.pull("reg.test/acme/app:v1"),
    );
    let on_disk = on_disk?;
    pull_at_last(&node, "reg.test/acme/app:v1").await?;
    let agent = node.agent()?;
    let received = until("its transfers have ended", Duration::from_secs(10), async || {
        let metrics = agent.metrics().await.ok()?;
        let received = metrics.sum("larder_transfers_received_bytes_total", &["source=\"upstream\""]);
        (metrics.sum("larder_transfers_active", &[]) == 0.0 && received > 0.0).then_some(received as u64)
    })
    .await?;
    // Manifest and config came once more, if they came too late.
    let lacking = image.size() - (on_disk - 1) * MEBIBYTE;
    ensure!(on_disk < 48, "it had all of it before it was killed");
    ensure!(received <= lacking, "{received} bytes were received of {lacking}, with {on_disk} MiB on the disk");
    Ok(())
}

/// At which byte of the layer it is killed, and how many bytes a second each connection brings: few enough that the agent
/// opens several, or so many that there is one or two.
const KILLS: [(u64, u64); 4] =
    [(2_345_678, 48 * MEBIBYTE), (13_579_024, 6 * MEBIBYTE), (37_000_001, 6 * MEBIBYTE), (56_789_012, 24 * MEBIBYTE)];

/// As upstream counts it: by the bytes that it has sent in all.
async fn killed_anywhere_it_fetches_little_twice(case: Case) -> Result<()> {
    let image = Image::one_layer(4, 64);
    let layer = image.largest();
    let length = layer.bytes.len() as u64;
    for (at, rate) in KILLS {
        let namespace = Namespace::new()?;
        namespace.set("net/ipv4/tcp_rmem", &format!("4096 131072 {RECEIVE_BUFFER}"))?;
        let registry = FaultRegistry::start_within(&namespace, (Ipv4Addr::LOCALHOST, 5000).into())?;
        registry.add(&image, "acme/app", "v1");
        registry.fault(When::get(layer), Fault::Trickle(rate));
        let mut builder = case.builder_of_the_agent_alone(&registry)?;
        builder.containerd.namespace = Some(namespace.clone());
        builder.agent.namespace = Some(namespace);
        let mut node = builder.start().await?;
        let agent = node.agent.as_mut().unwrap();
        let (killed, _) = tokio::join!(
            async {
                let reached = async || (registry.sent(&layer.digest) >= at).then_some(());
                until("that byte has been sent", Duration::from_secs(30), reached).await?;
                agent.kill();
                let (sent, connections) = (registry.sent(&layer.digest), registry.most_at_once() as u64);
                agent.start_again().await?;
                anyhow::Ok((sent, connections))
            },
            node.containerd.pull("reg.test/acme/app:v1"),
        );
        let (before, connections) = killed?;
        ensure!(before < length, "all of it had been sent before it was killed at {at}");
        registry.heal();
        pull_at_last(&node, "reg.test/acme/app:v1").await?;
        let twice = registry.sent(&layer.digest) - length;
        let most = MOST_TWICE + connections * (RECEIVE_BUFFER + SEND_BUFFER);
        let shown = registry.shown(&layer.digest);
        ensure!(twice <= most, "killed at {at}, with {connections} connections: {twice} bytes came twice:{shown}");
    }
    Ok(())
}

/// How many chunks of a blob that is arriving lie on the agent's disk as they should be.
fn whole_chunks(agent: &Agent, blob: &Blob) -> u64 {
    let file = agent.cache().join("ingest").join(format!("{}.part", blob.digest.replace(':', "-")));
    let Ok(there) = std::fs::read(file) else { return 0 };
    let chunks = there.chunks(MEBIBYTE as usize).zip(blob.bytes.chunks(MEBIBYTE as usize));
    chunks.filter(|(there, right)| there == right).count() as u64
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
