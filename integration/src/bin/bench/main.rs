//! The benchmarks: what a pull costs with Larder, without it, and with nginx, paired in one run.
//!
//! `make bench` runs them all; `cargo run --release -p larder-integration --bin bench -- warm raw` some of them.
//! `LARDER_BENCH_PAIRS` changes the number of pairs (15); `LARDER_BENCH_ONLY` keeps the pulls whose name has it
//! ("512 MiB, unlimited").

#![forbid(unsafe_code)]

mod debian;
mod footprint;
mod pulls;
mod raw;
mod stats;

use anyhow::{Result, bail, ensure};

const ALL: [&str; 6] = ["cold", "warm", "raw", "head", "memory", "start"];

#[tokio::main]
async fn main() -> Result<()> {
    larder_integration::require_root()?;
    ensure!(!cfg!(debug_assertions), "figures of a debug build say nothing: cargo run --release, or make bench");
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = asked.iter().find(|name| !ALL.contains(&name.as_str())) {
        bail!("no benchmark is named {unknown}; there are {}", ALL.join(", "));
    }
    let pairs = std::env::var("LARDER_BENCH_PAIRS").ok().map_or(Ok(15), |text| text.parse())?;
    for name in ALL.into_iter().filter(|name| asked.is_empty() || asked.iter().any(|asked| asked == name)) {
        match name {
            "cold" => pulls::cold(pairs).await?,
            "warm" => pulls::warm(pairs).await?,
            "raw" => raw::download(pairs).await?,
            "head" => raw::heads().await?,
            "memory" => footprint::memory().await?,
            _ => footprint::start().await?,
        }
    }
    Ok(())
}
