//! What it costs to have peers configured where none can be reached.

use anyhow::Result;
use larder_integration::{Cluster, FaultRegistry, Image, Network, PEERS_PORT};

use crate::pulls::REPOSITORY;
use crate::stats::Median;

/// Pulls of each kind that are measured together.
const PULLS: usize = 10;

/// A small image through an agent without peers, and through one whose seeds refuse, and are silent. Pairs of ten pulls.
pub(crate) async fn apart(pairs: usize) -> Result<()> {
    let network = Network::new()?;
    let registry = FaultRegistry::start_on(&network.host(None)?)?;
    let nobody = network.host(None)?;
    let seeds = [format!("{}:{PEERS_PORT}", nobody.address()), format!("10.77.99.99:{PEERS_PORT}")];
    let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
    let alone = |_: usize, config: &mut larder_integration::AgentConfig| {
        for key in ["seeds", "ca", "key", "listen"] {
            config.unset("peers", key);
        }
    };
    let builder =
        || Ok::<_, anyhow::Error>(Cluster::builder(&network, 1, None)?.registry("reg.test", &[&registry.url()]));
    let without = builder()?.configure(alone).launch().await?;
    let with = builder()?.seeds(&seeds).launch().await?;
    let (mut differences, mut usual) = (Vec::new(), Vec::new());
    for pair in 0..=pairs {
        let mut times = [0.0; 2];
        for pull in 0..PULLS {
            let seed = (pair * PULLS + pull) as u64;
            // Content that neither has had before.
            let image = Image::many_layers(seed, 4, 64);
            registry.add(&image, REPOSITORY, "v1");
            let mut arms = [(0, &without), (1, &with)];
            arms.rotate_left(pull % 2);
            for (arm, cluster) in arms {
                times[arm] += cluster.member(0).pull(crate::pulls::NAME).await?.took.as_secs_f64() * 1000.0;
            }
            registry.clear_log();
        }
        // The first warms up.
        if pair > 0 {
            usual.push(times[0] / PULLS as f64);
            differences.push((times[1] - times[0]) / PULLS as f64);
        }
    }
    println!("\npeers configured and none reachable, an image of five small blobs, {pairs} pairs of {PULLS} pulls:");
    println!("  without peers {:.2} ms a pull", Median::of(&usual).middle);
    println!("  with          {} ms more (≤ 20)", Median::of(&differences));
    Ok(())
}
