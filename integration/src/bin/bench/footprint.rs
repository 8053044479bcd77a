//! Memory, and the time from start to service.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use larder_integration::{Agent, AgentConfig, Fault, FaultRegistry, Folder, Image, When, digest_of, until};
use tokio::task::JoinSet;

use crate::raw::get;
use crate::stats::Median;

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

/// From the start of the process to the first blob, with 100,000 in the store.
pub(crate) async fn start() -> Result<()> {
    let folder = Folder::new()?;
    let mut agent = Agent::prepare(&folder.path().join("agent"), &AgentConfig::without_containerd(folder.path()))?;
    let blobs = agent.cache().join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    for n in 0..100_000 {
        let content = format!("the content of blob {n}");
        let digest = digest_of(content.as_bytes());
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), content)?;
    }
    let (http, url) = (agent.http().clone(), format!("{}/v2/", agent.mirror()));
    let mut times = Vec::new();
    // The first start makes the index of what it finds.
    for round in 0..8 {
        let begun = Instant::now();
        agent.launch()?;
        let answers = async || http.get(&url).await.ok().filter(|reply| reply.status == 200);
        until("the mirror answers", Duration::from_secs(60), answers).await?;
        let time = begun.elapsed().as_secs_f64() * 1000.0;
        match round {
            0 => println!("\nstart with 100,000 blobs that no index knows: serving after {time:.0} ms"),
            _ => times.push(time),
        }
        agent.ready().await?;
        agent.stop()?;
    }
    println!("start with 100,000 blobs: serving after {:.0} ms (median of {})", Median::of(&times).middle, times.len());
    Ok(())
}
