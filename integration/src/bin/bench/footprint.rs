//! Memory, CPU at rest, and the time from start to service.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_integration::{
    Agent, AgentConfig, Blob, Fault, FaultRegistry, Folder, Image, Node, Release, When, digest_of, until,
};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::task::JoinSet;

use crate::raw::get;
use crate::stats::Median;

/// What the store of a busy node has.
const BLOBS: u32 = 100_000;

/// Idle, and with eight transfers of 512 MiB at once.
pub(crate) async fn memory() -> Result<()> {
    let (folder, registry) = (Folder::new()?, FaultRegistry::start().await?);
    let images: Vec<Image> = (0..8).map(|seed| Image::one_layer(seed, 512)).collect();
    for image in &images {
        registry.add(image, "acme/app", "v1");
    }
    // Long enough for all eight to be under way at once.
    registry.fault(When::path("/blobs/"), Fault::Trickle(64 << 20));
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry("reg.test", &[&registry.url()]);
    let agent = Agent::start(&folder.path().join("agent"), &config).await?;
    let process = agent.process()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = process.resident_bytes();

    let mut readers = JoinSet::new();
    for image in &images {
        let (port, blob) = (agent.mirror_port(), image.largest().clone());
        let path = format!("/v2/acme/app/blobs/{}?ns=reg.test", blob.digest);
        readers.spawn(async move { get(port, &path, blob.bytes.len()).await });
    }
    let mut most = 0;
    while !readers.is_empty() {
        tokio::select! {
            read = readers.join_next() => read.context("a reader")???,
            () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(process.resident_bytes()),
        }
    }
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "\nresident memory: idle {:.1} MiB, eight transfers of 512 MiB {:.1} MiB",
        mebibytes(idle),
        mebibytes(most)
    );
    Ok(())
}

/// What nobody pulls through costs: CPU of an agent with 100,000 blobs in its store, which it looks through for damage, and
/// a containerd beside it, asked as a Pod is, by its two probes and by Prometheus.
pub(crate) async fn rest() -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let builder = Node::builder(Release::Sid)?.registry("reg.test", &registry.url())?;
    fill(&builder.folder().join("larder/cache"))?;
    let node = builder.start().await?;
    for n in 0..8 {
        registry.add(&Image::many_layers(n, 8, 100), &format!("acme/app{n}"), "v1");
        node.containerd.pull(&format!("reg.test/acme/app{n}:v1")).await?;
    }
    let agent = node.agent()?;
    // The slow look for damage goes on meanwhile, and hashes what no index knew: 64 of them a second.
    let is_known = async || {
        let metrics = agent.metrics().await.ok()?;
        let looks = metrics.sum("larder_store_rechecked_total", &[]) > 0.0;
        (looks && metrics.sum("larder_store_blobs", &[]) >= f64::from(BLOBS)).then_some(())
    };
    until("the agent knows its blobs", Duration::from_secs(120), is_known).await?;

    // Long enough for a whole listing of containerd, which comes every five minutes.
    let watched = Duration::from_secs(330);
    let (process, begun) = (agent.process()?, Instant::now());
    let (before, probes_before) = (process.cpu_time(), of_ended_children()?);
    let every = |seconds| tokio::time::interval(Duration::from_secs(seconds));
    let (mut ready, mut live, mut figures) = (every(5), every(20), every(15));
    while begun.elapsed() < watched {
        tokio::select! {
            _ = ready.tick() => ensure!(agent.probe("ready").await?),
            _ = live.tick() => ensure!(agent.probe("live").await?),
            _ = figures.tick() => drop(agent.metrics().await?),
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let a_minute = |cpu: Duration| cpu.as_secs_f64() * 60.0 / took;
    let (own, probes) = (a_minute(process.cpu_time() - before), a_minute(of_ended_children()? - probes_before));
    println!(
        "at rest with 100,000 blobs: {own:.2} s of CPU a minute by the agent, {probes:.2} by its probes: {:.1}m in all",
        (own + probes) * 1000.0 / 60.0
    );
    Ok(())
}

/// The CPU time of what this process has started and waited for.
fn of_ended_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.try_into()?))
}

/// Puts small blobs into a cache that no agent has seen yet.
fn fill(cache: &Path) -> Result<()> {
    let blobs = cache.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    for n in 0..BLOBS {
        let content = format!("the content of blob {n}");
        let digest = digest_of(content.as_bytes());
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), content)?;
    }
    Ok(())
}

/// From the start of the process to the first blob, with 100,000 in the store, after an orderly end and after `kill -9`.
pub(crate) async fn start() -> Result<()> {
    let (folder, mut registry) = (Folder::new()?, FaultRegistry::start().await?);
    let image = Image::tiny(1);
    registry.add(&image, "acme/app", "v1");
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry("reg.test", &[&registry.url()]);
    let mut agent = Agent::prepare(&folder.path().join("agent"), &config)?;
    fill(&agent.cache())?;
    let layer = image.largest();
    // The first start makes the index of what it finds.
    let time = time_to_first(layer, &mut agent).await?;
    println!("\nstart with 100,000 blobs that no index knows: serving after {time:.0} ms");
    registry.refuse();
    for (after, is_killed) in [("an orderly end", false), ("kill -9", true)] {
        let mut times = Vec::new();
        for _ in 0..7 {
            // One that ends before it has been through its index is a matter of its own.
            let trial = agent.cache().join("index.trial");
            let is_through = async || std::fs::read(&trial).is_ok_and(|marks| marks == b"p").then_some(());
            until("index and disk agree", Duration::from_secs(60), is_through).await?;
            match is_killed {
                true => agent.kill(),
                false => agent.stop()?,
            }
            times.push(time_to_first(layer, &mut agent).await?);
        }
        let (median, most) = (Median::of(&times).middle, times.iter().copied().fold(0.0, f64::max));
        println!(
            "start with 100,000 blobs after {after}: serving after {median:.0} ms (median of {}, {most:.0} at most)",
            times.len()
        );
    }
    Ok(())
}

/// Starts the agent; milliseconds until it has given this blob.
async fn time_to_first(blob: &Blob, agent: &mut Agent) -> Result<f64> {
    let url = format!("{}/v2/acme/app/blobs/{}?ns=reg.test", agent.mirror(), blob.digest);
    let begun = Instant::now();
    agent.launch()?;
    let gives = async || agent.http().get(&url).await.ok().filter(|reply| reply.body == blob.bytes);
    until("the mirror gives a blob", Duration::from_secs(60), gives).await?;
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}
