//! A large layer from upstreams that limit each connection, all of them together, or nothing.

use std::net::SocketAddr;

use anyhow::Result;
use larder_integration::{Folder, Front, Image, Registry};

use crate::pulls::{Arm, NAME, REPOSITORY, agent, asked_for};
use crate::stats::Median;

/// 20 MB/s and 1 Gbit/s.
const EACH: u64 = 20_000_000;
const ALL: u64 = 125_000_000;

/// One layer of 512 MiB, cold, through Larder and past it.
pub(crate) async fn ranges(pairs: usize) -> Result<()> {
    let image = Image::one_layer(1, 512);
    // A direct pull takes 27 s where each connection is limited.
    let cases = [
        ("20 MB/s for each connection", pairs.min(3), "≤ 0.300 of its time"),
        ("1 Gbit/s for all", pairs.min(7), "≥ 0.950 of its rate"),
        ("unlimited", pairs, "≥ 0.950 of its rate"),
    ];
    for (limit, pairs, target) in cases {
        if !asked_for(limit) {
            continue;
        }
        let folder = Folder::new()?;
        let registry = Registry::start().await?;
        registry.push(&image, REPOSITORY, "v1").await?;
        let address: SocketAddr = registry.host().parse()?;
        let front = match limit {
            "unlimited" => None,
            "1 Gbit/s for all" => Some(Front::start(address, Some(ALL)).await?),
            _ => Some(Front::start_limiting_each(address, EACH).await?),
        };
        // Unlimited, no proxy of ours is in the way.
        let upstream = front.as_ref().map_or_else(|| registry.url(), Front::url);
        let hosts = |name: &str| folder.path().join(format!("hosts-{name}"));
        let mut direct = Arm::new("direct", folder.path(), &hosts("direct"), Some(&upstream)).await?;
        let mut larder = Arm::new("larder", folder.path(), &hosts("larder"), Some(&upstream)).await?;
        let mut agent = agent(folder.path(), &larder, &hosts("larder"), &upstream).await?;
        for pair in 0..=pairs {
            agent.kill();
            let _ = std::fs::remove_dir_all(agent.cache());
            agent.start_again().await?;
            let mut arms = [&mut direct, &mut larder];
            arms.rotate_left(pair % 2);
            for arm in arms {
                arm.pull(&image, pair > 0).await?;
            }
        }
        let (time, rate) =
            (Median::of_ratios(&larder.fetch, &direct.fetch), Median::of_ratios(&direct.fetch, &larder.fetch));
        println!("\n{NAME}, one layer of 512 MiB, upstream {limit}, {pairs} pairs:");
        println!("  direct   fetch {:.3} s", Median::of(&direct.fetch).middle);
        println!("  larder   fetch {:.3} s", Median::of(&larder.fetch).middle);
        println!("  larder of direct: {time} of its time, {rate} of its rate (target: {target})");
    }
    Ok(())
}
