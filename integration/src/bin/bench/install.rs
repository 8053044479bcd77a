//! What it takes to install Larder on a node that runs images already.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use larder_integration::{FaultRegistry, Image, Node, Release, tool, until};

/// 2 GiB of images in containerd, then the agent: until every blob of them is linked, and what that cost.
pub(crate) async fn install() -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let release = if tool(&format!("{}/VERSION", Release::Newest)).is_ok() { Release::Newest } else { Release::Sid };
    let mut node = Node::builder(release)?.without_agent().registry("reg.test", &registry.url())?.start().await?;
    let (images, mut blobs) = (8, 0);
    for n in 0..images {
        let image = Image::many_layers(n, 4, 64 << 10);
        blobs += image.blobs().len() + image.manifests().len();
        registry.add(&image, &format!("acme/app{n}"), "v1");
        node.containerd.pull(&format!("reg.test/acme/app{n}:v1")).await?;
    }
    registry.clear_log();
    let before = used(&node.containerd.root())?;
    let begun = Instant::now();
    node.install_agent().await?;
    let agent = node.agent()?;
    let whole = async || {
        let said = agent.say(&["cache", "ls", "--json"]).await.ok()?;
        (said.lines().filter(|line| line.contains("\"whole\":true")).count() as u64 >= images).then_some(())
    };
    until("every image is whole", Duration::from_secs(300), whole).await?;
    let known = begun.elapsed();
    let all = async || (linked(&agent.cache().join("blobs/sha256")).ok()? >= blobs).then_some(());
    until("every blob is linked", Duration::from_secs(300), all).await?;
    let took = begun.elapsed();
    let cpu = agent.process()?.cpu_time();
    let more = used(&agent.cache())?;
    println!("\ninstalled on a node that holds {:.2} GiB in {images} images:", before as f64 / f64::from(1 << 30));
    println!("  every one known to be whole after {:.1} s (≤ 60)", known.as_secs_f64());
    println!("  every blob linked after {:.1} s, {:.1} s of CPU", took.as_secs_f64(), cpu.as_secs_f64());
    println!("  {:.2} % more disk (≤ 1)", more as f64 * 100.0 / before as f64);
    println!("  {} requests for blobs at the registry (0 GETs)", registry.count("GET", "/blobs/"));
    Ok(())
}

/// Files of a folder that have another name elsewhere.
fn linked(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        count += usize::from(entry?.metadata()?.nlink() > 1);
    }
    Ok(count)
}

/// Bytes of the disk that only files below a folder use.
fn used(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            sum += used(&entry.path())?;
        } else if metadata.nlink() == 1 {
            sum += metadata.blocks() * 512;
        }
    }
    Ok(sum)
}
