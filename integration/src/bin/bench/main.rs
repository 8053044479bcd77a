//! The benchmarks: what a pull costs with Larder, without it, and with nginx, paired in one run.
//!
//! `make bench` runs them all; `cargo run --release -p larder-integration --bin bench -- warm raw` some of them.
//! `LARDER_BENCH_PAIRS` changes the number of pairs (15); `LARDER_BENCH_ONLY` keeps the pulls whose name has it
//! ("512 MiB, unlimited"). `LARDER_SOAK_SECONDS` is the length of the soak (60), `LARDER_SEED` repeats one.
//! `LARDER_BENCH_LINK` is the rate of a cluster's links in Mbit/s (100).
//! `LARDER_BENCH_LOGS` names a folder in which the clusters leave what their agents logged, and what upstream was asked.

#![forbid(unsafe_code)]

mod chain;
mod cluster;
mod collect;
mod committed;
mod debian;
mod footprint;
mod install;
mod memory;
mod pulls;
mod ranges;
mod raw;
mod stats;

use anyhow::{Result, bail, ensure};
use larder_integration::Disk;

const ALL: [&str; 15] = [
    "cold", "warm", "ranges", "raw", "head", "chain", "memory", "rest", "start", "collect", "install", "cluster",
    "apart", "stream", "soak",
];

/// Of the disk on which all is measured but clusters, in GiB: three containerds, what they pull from, and an agent.
const DISK: u64 = 12;

#[tokio::main]
async fn main() -> Result<()> {
    larder_integration::require_root()?;
    ensure!(!cfg!(debug_assertions), "figures of a debug build say nothing: cargo run --release, or make bench");
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = asked.iter().find(|name| !ALL.contains(&name.as_str())) {
        bail!("no benchmark is named {unknown}; there are {}", ALL.join(", "));
    }
    // Figures on a disk as nodes have it: without a journal, ext4 looks at each file that went within the last 35 seconds
    // before it makes a new one, which costs a pull of many small layers a third of its time.
    let disk = Disk::of_a_node(DISK)?;
    if tempfile::env::override_temp_dir(disk.path()).is_err() {
        bail!("the folder for temporary files was chosen before this began");
    }
    let pairs = std::env::var("LARDER_BENCH_PAIRS").ok().map_or(Ok(15), |text| text.parse())?;
    for name in ALL.into_iter().filter(|name| asked.is_empty() || asked.iter().any(|asked| asked == name)) {
        match name {
            "cold" => pulls::cold(pairs).await?,
            "warm" => pulls::warm(pairs).await?,
            "ranges" => ranges::ranges(pairs).await?,
            "raw" => raw::download(pairs).await?,
            "head" => raw::heads().await?,
            "chain" => chain::chain().await?,
            "soak" => chain::soak().await?,
            "cluster" => cluster::cluster(pairs).await?,
            "apart" => cluster::apart(pairs).await?,
            "stream" => cluster::stream(pairs).await?,
            "collect" => collect::collect().await?,
            "install" => install::install().await?,
            "memory" => footprint::memory().await?,
            "rest" => footprint::rest().await?,
            _ => footprint::start().await?,
        }
    }
    Ok(())
}
