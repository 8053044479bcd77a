//! What a collection of the cache costs, and what look-ups cost beside it, with 100,000 blobs in the store.
//!
//! Nothing else happens in that time: what a store does once with what it finds is over before. A thread of its own looks
//! up in the same way without a collection and beside one.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use larder_integration::{Agent, AgentConfig, Fault, FaultRegistry, Folder, Image, When, digest_of, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::raw::{agent_is_quiet, get, read_head};
use crate::stats::Median;

/// What is in the store at every pass, at least.
const BLOBS: usize = 100_000;
const BLOB: usize = 1024;
/// Rounds with look-ups, and rounds without any, to measure the CPU.
const ROUNDS: (usize, usize) = (5, 3);
/// What arrives in each round, in MiB: as many bytes go for it, about a tenth of the blobs.
const ARRIVES: usize = 10;
/// What the store begins with: the last pass, too, is one over `BLOBS`.
const LAID: usize = BLOBS + (ROUNDS.0 + ROUNDS.1) * (ARRIVES << 20) / BLOB;
/// Of this the blobs are the 95 % to which a pass brings the store; what arrives is more than the rest.
const MAX_BYTES: usize = LAID * BLOB / 95 * 100;
/// Look-ups are measured without a collection for so long, before each one.
const QUIET: Duration = Duration::from_secs(3);
/// The index is written a second after the last change of it.
const SETTLED: Duration = Duration::from_secs(2);
/// Blobs rest for half a minute before they are brought to the disk.
const SYNCED: Duration = Duration::from_secs(32);
/// The store may take so long to find its blobs, and to prove them.
const KNOWN: Duration = Duration::from_secs(60);
const PROVEN: Duration = Duration::from_secs(200);
/// A collection may take so long before it is said to hang.
const COLLECTED: Duration = Duration::from_secs(60);

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
    until("all of them are known", KNOWN, async || {
        let known = agent.metrics().await.ok()?.sum("larder_store_blobs", &[]);
        (known >= LAID as f64).then_some(())
    })
    .await?;
    // What is found would be hashed before its first use.
    let verified = agent.command_for(&["cache", "verify"], PROVEN).await?;
    ensure!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    tokio::time::sleep(SYNCED).await;
    agent_is_quiet(&agent).await?;
    let manifest = image.root();
    let port = agent.mirror_port();
    get(port, &format!("/v2/acme/app/manifests/{}?ns=reg.test", manifest.digest), manifest.bytes.len()).await?;
    get(port, &blob_path("acme/app", &image), image.largest().bytes.len()).await?;
    let paths = ["/v2/acme/app/manifests/v1?ns=reg.test".to_owned(), blob_path("acme/app", &image)];
    LookUps::begin(port, &paths).end_after(QUIET).await?;

    let mut held = Vec::new();
    let (mut cpu, mut took, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut quiet, mut beside) = (Vec::new(), Vec::new());
    println!("\na collection of {} of {BLOBS} blobs and more:", (ARRIVES << 20) / BLOB);
    for (round, image) in arriving.iter().enumerate() {
        let path = blob_path("acme/large", image);
        if round < ROUNDS.0 {
            let without = LookUps::begin(port, &paths).end_after(QUIET).await?;
            let looking = LookUps::begin(port, &paths);
            held.push(begin(port, &path).await?);
            collected(&agent, round + 1).await?;
            let with = looking.end_after(Duration::ZERO).await?;
            println!(
                "  p99 of {} HEADs without: {:.3} ms, of {} beside it: {:.3} ms",
                without.len(),
                p99(&without),
                with.len(),
                p99(&with)
            );
            ratios.push(p99(&with) / p99(&without));
            quiet.push(p99(&without));
            beside.push(p99(&with));
            tokio::time::sleep(SETTLED).await;
        } else {
            let (before, begun) = (agent.process()?.cpu_time(), Instant::now());
            held.push(begin(port, &path).await?);
            collected(&agent, round + 1).await?;
            took.push(begun.elapsed().as_secs_f64());
            // What it has changed in the index is its work, too.
            tokio::time::sleep(SETTLED).await;
            cpu.push(agent.process()?.cpu_time().saturating_sub(before).as_secs_f64());
        }
    }
    println!("  CPU: {} s, {:.2} s in all", Median::of(&cpu), Median::of(&took).middle);
    let (quiet, beside) = (Median::of(&quiet).middle, Median::of(&beside).middle);
    println!("  p99 of a HEAD: {quiet:.3} ms without, {beside:.3} ms beside it: {}", Median::of(&ratios));
    Ok(())
}

/// Files that the first start finds.
fn lay(agent: &Agent) -> Result<()> {
    let blobs = agent.cache().join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    for n in 0..LAID {
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
async fn begin(port: u16, path: &str) -> Result<tokio::net::TcpStream> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
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

/// HEADs on one connection, one after the other, from a thread that does nothing else.
struct LookUps {
    is_over: Arc<AtomicBool>,
    times: JoinHandle<Result<Vec<f64>>>,
}

impl LookUps {
    fn begin(port: u16, paths: &[String]) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (ends, paths) = (Arc::clone(&is_over), paths.to_vec());
        let times = tokio::task::spawn_blocking(move || look_up_until(port, &paths, &ends));
        Self { is_over, times }
    }

    /// How long each took, in milliseconds.
    async fn end_after(self, time: Duration) -> Result<Vec<f64>> {
        tokio::time::sleep(time).await;
        self.is_over.store(true, Ordering::Relaxed);
        self.times.await?
    }
}

fn look_up_until(port: u16, paths: &[String], is_over: &AtomicBool) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let (mut times, mut reply) = (Vec::new(), [0; 4096]);
    for path in paths.iter().cycle() {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        stream.write_all(format!("HEAD {path} HTTP/1.1\r\nhost: larder\r\n\r\n").as_bytes())?;
        let mut length = 0;
        while !reply[..length].ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut reply[length..])?;
            ensure!(read > 0, "a reply is cut, or longer than any head");
            length += read;
        }
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply[..length]));
    }
    Ok(times)
}

fn p99(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}
