//! The cache's disk is full, read-only or damaged; the cache is small.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{Agent, AgentConfig, Blob, Disk, FaultRegistry, Folder, Image, Labels, Node, Upstream, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::keep::{gone_at_containerd, remove};
use crate::support::{Case, ensure_only_the_agent_asked, on_every_containerd, run};

on_every_containerd!(over tls: full, read_only, the_cache_is_smaller_than_the_images, damaged);
on_every_containerd!(over tls by one: above_the_high_mark_it_goes_below_the_low_one);

async fn node_on(case: Case, registry: &FaultRegistry, disk: &Disk) -> Result<Node> {
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set_path("cache", "dir", &disk.path().join("larder"));
    builder.start().await
}

/// The image doesn't fit: it is pulled all the same, past the store. With room again, it is kept.
async fn full(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (large, small) = (Image::one_layer(1, 40), Image::many_layers(2, 4, 500));
    registry.add(&large, "acme/large", "v1");
    registry.add(&small, "acme/small", "v1");
    let disk = Disk::small(32)?;
    let node = node_on(case, &registry, &disk).await?;
    node.containerd.pull("reg.test/acme/large:v1").await?;

    let ballast = disk.path().join("ballast");
    fill(&ballast);
    node.containerd.pull("reg.test/acme/small:v1").await?;
    ensure_only_the_agent_asked(&registry)?;

    std::fs::remove_file(&ballast)?;
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/small:v1").await?;
    until("it is kept again", Duration::from_secs(30), async || {
        (node.agent().ok()?.metrics().await.ok()?.sum("larder_store_writable", &[]) == 1.0).then_some(())
    })
    .await?;
    Ok(())
}

async fn read_only(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    registry.add(&Image::many_layers(3, 3, 2000), "acme/one", "v1");
    registry.add(&Image::many_layers(4, 3, 2000), "acme/two", "v1");
    registry.add(&Image::many_layers(5, 3, 2000), "acme/three", "v1");
    let disk = Disk::small(64)?;
    let mut node = node_on(case, &registry, &disk).await?;
    node.containerd.pull("reg.test/acme/one:v1").await?;
    node.agent_mut()?.stop()?;
    disk.set_read_only(true)?;
    // Already there when it starts.
    node.agent_mut()?.start_again().await?;
    node.containerd.pull("reg.test/acme/two:v1").await?;
    disk.set_read_only(false)?;
    node.agent_mut()?.stop()?;
    node.agent_mut()?.start_again().await?;
    node.containerd.pull("reg.test/acme/three:v1").await?;
    ensure_only_the_agent_asked(&registry)?;
    Ok(())
}

/// `max_bytes` holds from pull to pull, and the image pulled last is there.
async fn the_cache_is_smaller_than_the_images(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let images: Vec<Image> = (10..16).map(|seed| Image::one_layer(seed, 5)).collect();
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set_text("cache", "max_bytes", "12MiB");
    let node = builder.start().await?;
    for (n, image) in images.iter().enumerate() {
        registry.add(image, &format!("acme/app{n}"), "v1");
        node.containerd.pull(&format!("reg.test/acme/app{n}:v1")).await?;
        // containerd has its layer; the agent commits and makes room right behind it.
        let held = async || (held(&node.agent().ok()?.cache()).ok()? <= 12 << 20).then_some(());
        until("the cache is within bounds", Duration::from_secs(10), held).await?;
    }
    // What containerd gives up counts as ours from then on.
    node.containerd.wipe().await?;
    let held = async || (held(&node.agent().ok()?.cache()).ok()? <= 12 << 20).then_some(());
    until("the cache is within bounds again", Duration::from_secs(60), held).await?;
    registry.clear_log();
    node.containerd.pull("reg.test/acme/app5:v1").await?;
    ensure!(registry.count("GET", "/blobs/") == 0, "the image pulled last wasn't kept");
    node.containerd.pull("reg.test/acme/app0:v1").await?;
    ensure!(registry.count("GET", "/blobs/") > 0, "the image pulled first was kept: more is held than may be");
    Ok(())
}

/// containerd and the cache on one disk. What containerd has dropped is still held; when others fill the disk above the
/// high mark, the image that was used longest ago goes, and no more than it takes to come below the low mark. By hand, it
/// can be said before, and done at once.
async fn above_the_high_mark_it_goes_below_the_low_one(case: Case) -> Result<()> {
    const HIGH: u64 = 60;
    const LOW: u64 = 55;
    let registry = FaultRegistry::start().await?;
    let images = [
        ("older", Image::one_layer(40, 24)),
        ("newer", Image::one_layer(41, 24)),
        ("runs", Image::builder(42).layer(8 << 20).program()?.build()),
    ];
    for (name, image) in &images {
        registry.add(image, &format!("acme/{name}"), "v1");
    }
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    let (mut disk, at) = (Disk::small(320)?, builder.folder().join("containerd"));
    disk.move_to(&at)?;
    builder.agent.set_path("cache", "dir", &at.join("larder"));
    builder.agent.set("cache", "max_disk_percent", HIGH.to_string());
    let node = builder.start().await?;
    let agent = node.agent()?;
    let held = |image: &Image| at.join("larder/blobs").join(image.largest().digest.replace(':', "/"));
    for (name, image) in &images {
        node.containerd.pull(&format!("reg.test/acme/{name}:v1")).await?;
        let is_shared = async || (held(image).metadata().ok()?.nlink() == 2).then_some(());
        until("it is containerd's too", Duration::from_secs(30), is_shared).await?;
    }
    node.containerd.run("reg.test/acme/runs:v1", &Labels::of_container("default", "web", "app")).await?;
    for (name, image) in &images[..2] {
        remove(&node, &format!("acme/{name}"), image).await?;
        gone_at_containerd(&node, image).await?;
    }
    let evictions = "larder_store_evictions_total";
    let own = 2 * (24 << 20);
    until("both count as ours", Duration::from_secs(30), async || {
        (agent.metrics().await.ok()?.sum("larder_store_bytes", &[]) >= f64::from(own)).then_some(())
    })
    .await?;
    ensure!(images.iter().all(|(_, image)| held(image).exists()), "something has gone before it had to");
    ensure!(agent.metrics().await?.sum(evictions, &[]) == 0.0);

    // Two percent above the mark: seven are to be free, and each image has more.
    let (size, used) = use_of(&at)?;
    let ballast = (size * (HIGH + 2) / 100).checked_sub(used).context("the disk is too small for the images")?;
    let path = at.join("ballast");
    std::fs::write(&path, vec![0x5a; usize::try_from(ballast)?])?;
    until("the older one goes", Duration::from_secs(60), async || (!held(&images[0].1).exists()).then_some(())).await?;
    until("it is counted", Duration::from_secs(10), async || {
        let metrics = agent.metrics().await.ok()?;
        (metrics.sum(evictions, &["reason=\"max_disk_percent\""]) >= 1.0).then_some(())
    })
    .await?;
    until("the disk is below the low mark", Duration::from_secs(10), async || {
        let (size, used) = use_of(&at).ok()?;
        (used * 100 <= size * LOW).then_some(())
    })
    .await?;
    ensure!(path.exists() && held(&images[1].1).exists() && held(&images[2].1).exists(), "more went than had to");

    // The disk is looked at every ten seconds, and was a moment ago: now by hand.
    let (size, used) = use_of(&at)?;
    let more = (size * (HIGH + 2) / 100).checked_sub(used).context("the disk is above its mark still")?;
    std::fs::write(at.join("more"), vec![0x5a; usize::try_from(more)?])?;
    let said = agent.say(&["cache", "gc", "--dry-run"]).await?;
    ensure!(said.contains("reg.test/acme/newer:v1") && said.contains("would be removed"), "{said}");
    ensure!(held(&images[1].1).exists(), "it isn't only said what would go");
    let said = agent.say(&["cache", "gc"]).await?;
    ensure!(said.contains("reg.test/acme/newer:v1") && said.contains(" freed"), "{said}");
    ensure!(!held(&images[1].1).exists() && held(&images[2].1).exists(), "{said}");
    Ok(())
}

/// A blob cut short, one with a flipped bit, and a file that isn't ours: the right bytes are served.
async fn damaged(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::many_layers(20, 3, 6000);
    registry.add(&image, "acme/app", "v1");
    let mut node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    // Flipped under the running agent; the other is cut short while it is down.
    let [flipped, cut] = [&image.blobs()[1], &image.blobs()[2]];
    flip(&stored(&node, flipped)?, 4_000_000)?;
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await.context("after a flipped bit")?;

    node.agent_mut()?.stop()?;
    std::fs::File::options().write(true).open(stored(&node, cut)?)?.set_len(100_000)?;
    std::fs::write(node.agent()?.cache().join("blobs/sha256/notes.txt"), "not a blob")?;
    node.agent_mut()?.start_again().await?;
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await.context("after a truncated blob")?;
    for blob in image.blobs() {
        let agent = node.agent()?;
        let url = format!("{}/v2/acme/app/blobs/{}?ns=reg.test", agent.mirror(), blob.digest);
        ensure!(agent.http().get(&url).await?.body == blob.bytes);
    }
    Ok(())
}

/// A byte flips in a stored blob while it is being read: what has gone out is right, the flipped byte isn't sent, the
/// reply goes on from the registry, and the blob is made good.
#[test]
fn rots_in_mid_reply() {
    run(async {
        let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::opaque(30, 96 << 20));
        registry.add(&image, "acme/app", "v1");
        let mut config = AgentConfig::without_containerd(folder.path());
        config.upstreams("reg.test", vec![Upstream::insecure(&registry.url())]);
        let agent = Agent::start(&folder.path().join("agent"), &config).await?;
        let layer = image.largest();
        let url = format!("{}/v2/acme/app/blobs/{}?ns=reg.test", agent.mirror(), layer.digest);
        ensure!(agent.http().get(&url).await?.body == layer.bytes);
        let path = agent.cache().join("blobs").join(layer.digest.replace(':', "/"));
        until("it is stored", Duration::from_secs(10), async || path.exists().then_some(())).await?;
        registry.clear_log();

        let mut stream = TcpStream::connect(("127.0.0.1", agent.mirror_port())).await?;
        let target = url.strip_prefix(&agent.mirror()).context("the mirror's own URL")?;
        let request = format!("GET {target} HTTP/1.1\r\nhost: larder\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut reply = vec![0; 1 << 20];
        stream.read_exact(&mut reply).await?;
        // More than what lies in sockets on its way.
        flip(&path, 80 << 20)?;
        stream.read_to_end(&mut reply).await?;
        let head = reply.windows(4).position(|end| end == b"\r\n\r\n").context("no head")? + 4;
        ensure!(reply[head..] == layer.bytes, "{} of {} bytes, or wrong ones", reply.len() - head, layer.bytes.len());
        ensure!(registry.count("GET", "/blobs/") > 0, "where did the right byte come from?");
        ensure!(agent.metrics().await?.sum("larder_store_rotten_total", &[]) == 1.0);

        let made_good = async || (std::fs::read(&path).ok()? == layer.bytes).then_some(());
        until("it is made good", Duration::from_secs(20), made_good).await?;
        registry.clear_log();
        ensure!(agent.http().get(&url).await?.body == layer.bytes);
        ensure!(registry.count("GET", "/blobs/") == 0, "it isn't kept");
        Ok(())
    });
}

fn stored(node: &Node, blob: &Blob) -> Result<PathBuf> {
    let path = node.agent()?.cache().join("blobs").join(blob.digest.replace(':', "/"));
    ensure!(path.exists(), "{} isn't in the store", blob.digest);
    Ok(path)
}

pub(crate) fn flip(path: &Path, at: usize) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    bytes[at] ^= 1;
    // In place, as rot does it: the same file.
    use std::os::unix::fs::{FileExt, PermissionsExt};
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    std::fs::File::options().write(true).open(path)?.write_all_at(&bytes[at..=at], at as u64)?;
    Ok(())
}

/// Writes until there is no room.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    let mut piece = vec![0x5a; 1 << 20];
    while !piece.is_empty() {
        match file.write_all(&piece) {
            Ok(()) => {}
            Err(_) => piece.truncate(piece.len() / 2),
        }
    }
}

/// Bytes of a disk that files can have, and bytes that are used of them.
fn use_of(path: &Path) -> Result<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let used = (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
    Ok((used + stat.blocks_available() * stat.fragment_size(), used))
}

/// Bytes of the blobs in a cache, those left out that are containerd's too.
fn held(cache: &Path) -> Result<u64> {
    let mut sum = 0;
    for file in std::fs::read_dir(cache.join("blobs/sha256"))? {
        // One that goes meanwhile holds nothing.
        sum += file?.metadata().map_or(0, |metadata| if metadata.nlink() > 1 { 0 } else { metadata.len() });
    }
    Ok(sum)
}
