//! What a collection of the cache costs, and what look-ups cost beside it, with 100,000 blobs in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use larder_integration::{Agent, AgentConfig, Fault, FaultRegistry, Folder, Image, When, digest_of, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::raw::{get, read_head};
use crate::stats::Median;

const BLOBS: usize = 100_000;
const BLOB: usize = 1024;
/// Just above what they are together.
const MAX_BYTES: usize = 100 << 20;
/// What arrives in each round, in MiB: about a tenth of the blobs goes for it.
const ARRIVES: usize = 10;
/// Look-ups are measured without a collection for so long, before each one.
const QUIET: Duration = Duration::from_secs(2);
/// A collection may take so long before it is said to hang.
const COLLECTED: Duration = Duration::from_secs(60);
/// Rounds without look-ups, to measure the CPU, and rounds with them.
const ROUNDS: (usize, usize) = (2, 5);

pub(crate) async fn collect() -> Result<()> {
    let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::tiny(1));
    registry.add(&image, "acme/app", "v1");
    let arriving: Vec<Image> =
        (0..ROUNDS.0 + ROUNDS.1).map(|round| Image::one_layer(100 + round as u64, ARRIVES)).collect();
    for image in &arriving {
        registry.add(image, "acme/large", "v1");
        // It counts from its first byte on, and is no work.
        registry.fault(When::path(&image.largest().digest), Fault::Trickle(16 << 10));
    }
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry("reg.test", &[&registry.url()]).set_text("tags", "max_age", "1h");
    config.set("cache", "max_bytes", MAX_BYTES.to_string());
    let mut agent = Agent::prepare(&folder.path().join("agent"), &config)?;
    lay(&agent)?;
    agent.start_again().await?;
    until("all of them are known", COLLECTED, async || {
        let known = agent.metrics().await.ok()?.sum("larder_store_blobs", &[]);
        (known >= BLOBS as f64).then_some(())
    })
    .await?;
    let manifest = image.root();
    let port = agent.mirror_port();
    get(port, &format!("/v2/acme/app/manifests/{}?ns=reg.test", manifest.digest), manifest.bytes.len()).await?;
    get(port, &blob_path("acme/app", &image), image.largest().bytes.len()).await?;
    let paths = ["/v2/acme/app/manifests/v1?ns=reg.test".to_owned(), blob_path("acme/app", &image)];
    look_up(port, &paths, QUIET).await?;

    let mut held = Vec::new();
    let (mut cpu, mut took, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut quiet, mut beside) = (Vec::new(), Vec::new());
    for (round, image) in arriving.iter().enumerate() {
        let path = blob_path("acme/large", image);
        if round < ROUNDS.0 {
            let (before, begun) = (agent.process()?.cpu_time(), Instant::now());
            held.push(begin(port, &path).await?);
            collected(&agent, round + 1).await?;
            took.push(begun.elapsed().as_secs_f64());
            cpu.push(agent.process()?.cpu_time().saturating_sub(before).as_secs_f64());
            continue;
        }
        let without = look_up(port, &paths, QUIET).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let asked = paths.clone();
        let looking = tokio::spawn(async move { look_up_until(port, &asked, || ends.load(Ordering::Relaxed)).await });
        held.push(begin(port, &path).await?);
        collected(&agent, round + 1).await?;
        stop.store(true, Ordering::Relaxed);
        let with = looking.await??;
        ratios.push(p99(&with) / p99(&without));
        quiet.push(p99(&without));
        beside.push(p99(&with));
    }
    println!("\na collection of a tenth of {BLOBS} blobs:");
    println!("  {:.2} s of CPU, {:.2} s in all", Median::of(&cpu).middle, Median::of(&took).middle);
    let (quiet, beside) = (Median::of(&quiet).middle, Median::of(&beside).middle);
    println!("  p99 of a HEAD: {quiet:.3} ms without, {beside:.3} ms beside it: {}", Median::of(&ratios));
    Ok(())
}

/// Files that the first start finds.
fn lay(agent: &Agent) -> Result<()> {
    let blobs = agent.cache().join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    for n in 0..BLOBS {
        let mut content = format!("the content of blob {n}").into_bytes();
        content.resize(BLOB, b'.');
        let digest = digest_of(&content);
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), content)?;
    }
    Ok(())
}

fn blob_path(repository: &str, image: &Image) -> String {
    format!("/v2/{repository}/blobs/{}?ns=reg.test", image.largest().digest)
}

/// Begins to read a blob; it arrives for as long as what is returned lives.
async fn begin(port: u16, path: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: larder\r\n\r\n").as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream.read_u8().await?;
    Ok(stream)
}

/// Waits for the end of the `nth` collection.
async fn collected(agent: &Agent, nth: usize) -> Result<()> {
    until("room is made", COLLECTED, async || (agent.log().matches("made room").count() >= nth).then_some(())).await
}

async fn look_up(port: u16, paths: &[String], time: Duration) -> Result<Vec<f64>> {
    let until = Instant::now() + time;
    look_up_until(port, paths, || Instant::now() >= until).await
}

/// HEADs on one connection, one after the other; how long each took, in milliseconds.
async fn look_up_until(port: u16, paths: &[String], is_over: impl Fn() -> bool) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    for path in paths.iter().cycle() {
        if is_over() {
            break;
        }
        let begun = Instant::now();
        stream.write_all(format!("HEAD {path} HTTP/1.1\r\nhost: larder\r\n\r\n").as_bytes()).await?;
        let head = read_head(&mut stream).await?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(times)
}

fn p99(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}
