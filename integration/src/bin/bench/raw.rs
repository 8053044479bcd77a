//! The mirror's port without containerd: bulk over plain HTTP, and HEADs of a manifest.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_integration::{Agent, AgentConfig, FaultRegistry, Folder, Image, Nginx, Process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stats::Median;

/// A blob of 512 MiB that is held, from Larder and from nginx by sendfile.
pub(crate) async fn download(pairs: usize) -> Result<()> {
    let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::one_layer(1, 512));
    registry.add(&image, "acme/app", "v1");
    let agent = agent(&folder, &registry, |_| {}).await?;
    let nginx = Nginx::of_files(&[(&image, "acme/app", "v1")]).await?;
    let path = format!("/v2/acme/app/blobs/{}?ns=reg.test", image.largest().digest);
    let length = image.largest().bytes.len();
    // Into the store.
    get(agent.mirror_port(), &path, length).await?;
    agent_is_quiet(&agent).await?;
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for pair in 0..=pairs {
        let ours = (&mut ours, agent.process()?, agent.mirror_port());
        let theirs = (&mut theirs, nginx.process().context("nginx")?, nginx.port());
        let sides = if pair % 2 == 0 { [ours, theirs] } else { [theirs, ours] };
        for (side, process, port) in sides {
            let measured = side.measure(process, port, &path, length).await?;
            // The first pair warms up.
            if pair > 0 {
                side.rates.push(measured);
            }
        }
    }
    println!("\nraw download of {} MiB over plain HTTP, {pairs} pairs:", length >> 20);
    for (name, side) in [("nginx", &theirs), ("larder", &ours)] {
        let gibibytes = (length * (pairs + 1)) as f64 / f64::from(1 << 30);
        let cpu = side.cpu.as_secs_f64() / gibibytes;
        println!("  {name:8} {:.0} MB/s, {cpu:.2} CPU s/GiB", Median::of(&side.rates).middle / 1e6);
    }
    println!("  rate of larder of that of nginx: {}", Median::of_ratios(&ours.rates, &theirs.rates));
    Ok(())
}

/// A manifest's HEAD while the tag's answer is fresh, 1,000 on one connection.
pub(crate) async fn heads() -> Result<()> {
    let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::tiny(1));
    registry.add(&image, "acme/app", "v1");
    let agent = agent(&folder, &registry, |config| {
        config.set_text("tags", "max_age", "1h");
    })
    .await?;
    // As every pull does. A tag whose manifest isn't held is asked for anew: nobody would know who may have it.
    let manifest = image.root();
    let path = format!("/v2/acme/app/manifests/{}?ns=reg.test", manifest.digest);
    get(agent.mirror_port(), &path, manifest.bytes.len()).await?;
    let mut stream = TcpStream::connect(("127.0.0.1", agent.mirror_port())).await?;
    stream.set_nodelay(true)?;
    let request = "HEAD /v2/acme/app/manifests/v1?ns=reg.test HTTP/1.1\r\nhost: larder\r\n\r\n";
    let mut times = Vec::new();
    for n in 0..1100 {
        let begun = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let head = read_head(&mut stream).await?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        // The first hundred warm up.
        if n >= 100 {
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    times.sort_by(f64::total_cmp);
    println!("\nHEAD of a manifest, 1,000 on one connection: p50 {:.3} ms, p99 {:.3} ms", times[500], times[990]);
    Ok(())
}

async fn agent(folder: &Folder, registry: &FaultRegistry, more: impl Fn(&mut AgentConfig)) -> Result<Agent> {
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry("reg.test", &[&registry.url()]);
    more(&mut config);
    Agent::start(&folder.path().join("agent"), &config).await
}

/// Until it has nothing more to do: the blob is synced to disk behind the reply.
pub(crate) async fn agent_is_quiet(agent: &Agent) -> Result<()> {
    let process = agent.process()?;
    let mut before = process.cpu_time();
    larder_integration::until("the agent is quiet", Duration::from_secs(30), async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = process.cpu_time();
        (std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await
}

/// What one of the two did.
#[derive(Default)]
struct Side {
    rates: Vec<f64>,
    cpu: Duration,
}

impl Side {
    /// One download; bytes per second.
    async fn measure(&mut self, process: &Process, port: u16, path: &str, length: usize) -> Result<f64> {
        let (cpu, begun) = (process.cpu_time(), Instant::now());
        get(port, path, length).await?;
        let rate = length as f64 / begun.elapsed().as_secs_f64();
        self.cpu += process.cpu_time().saturating_sub(cpu);
        Ok(rate)
    }
}

/// Reads a body to its end and drops it.
pub(crate) async fn get(port: u16, path: &str, length: usize) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: larder\r\n\r\n").as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (mut buffer, mut left) = (vec![0; 1 << 20], length);
    while left > 0 {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "the body ended {left} bytes early");
        left = left.checked_sub(read).context("a body that is too long")?;
    }
    Ok(())
}

/// A reply's head, byte for byte so that nothing of the body goes with it.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    let mut peeked = [0; 4096];
    loop {
        let length = stream.peek(&mut peeked).await?;
        ensure!(length > 0, "closed before the head");
        // The end may lie across two reads.
        let from = head.len();
        head.extend_from_slice(&peeked[..length]);
        let end = head.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        let taken = end.map_or(length, |end| end - from);
        stream.read_exact(&mut peeked[..taken]).await?;
        if let Some(end) = end {
            head.truncate(end);
            return Ok(String::from_utf8(head)?);
        }
    }
}
