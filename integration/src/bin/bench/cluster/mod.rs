//! Eight nodes, each with an agent and a containerd, on links of 100 Mbit/s, upstream's too: one download for all of
//! them, and what ills do to it. Upstream counts what it gave by itself. What the nodes keep is in memory: eight of them
//! share one disk and two cores here, and a disk without a journal looks at every file that was removed within half a minute
//! before it makes another.

mod apart;
mod scene;
mod stream;

use std::time::Duration;

use anyhow::{Context, Result};
use larder_integration::{Fault, Rate, When};

pub(crate) use apart::apart;
pub(crate) use stream::stream;

use crate::pulls::asked_for;
use crate::stats::Median;
use scene::{Run, Scene};

const NODES: usize = 8;
/// Of each link, in Mbit/s, unless `LARDER_BENCH_LINK` says otherwise: where eight nodes and upstream share few cores, these
/// are what limits, and a lower rate shows what the links would.
const LINK: u64 = 100;
/// After which a source that falls silent is left.
const STALL: Duration = Duration::from_secs(2);

/// All variants, each on clusters of its own, a few times.
pub(crate) async fn cluster(pairs: usize) -> Result<()> {
    let times = pairs.min(3);
    let rate = link();
    println!("\n{NODES} nodes, 64 MiB in one large and 40 small layers, links of {rate} Mbit/s, ctr content fetch:");
    variant(times, "cold at once", 1.25, false, async |scene| scene.pull(&[]).await).await?;
    variant(times, "the same by CRI", 1.25, false, async |scene| scene.pull_by_cri().await).await?;
    variant(times, "who fetches is killed midway", 1.4, true, async |scene| {
        let begun = scene.begin(&all(&[]))?;
        scene.has_sent(0.5).await?;
        let holder = scene.fetching().context("nobody fetches")?;
        begun.end(holder);
        scene.cluster.member_mut(holder).kill();
        begun.finish(scene).await
    })
    .await?;
    variant(times, "a slow node fetches at first", 1.4, true, async |scene| {
        scene.cluster.member(0).set_rate(Some(slow()))?;
        let slow = scene.begin(&[0])?;
        scene.has_sent(0.01).await?;
        let others = scene.begin(&all(&[0]))?.finish(scene).await?;
        // What upstream gave by then, and what the slow one still takes, count.
        slow.finish(scene).await?;
        Ok(others.counted_again(scene))
    })
    .await?;
    variant(times, "a slow node in the middle", 1.4, true, async |scene| {
        scene.cluster.member(1).set_rate(Some(slow()))?;
        let first = scene.begin(&[0])?;
        scene.has_sent(0.01).await?;
        let slow = scene.begin(&[1])?;
        scene.has_sent(0.05).await?;
        let others = scene.begin(&all(&[0, 1]))?.finish(scene).await?;
        let first = first.finish(scene).await?;
        slow.finish(scene).await?;
        Ok(others.and(first).counted_again(scene))
    })
    .await?;
    variant(times, "two are killed, one is cut off", 1.4, true, async |scene| {
        let begun = scene.begin(&all(&[]))?;
        scene.has_sent(0.3).await?;
        let holder = scene.fetching().context("nobody fetches")?;
        let gone: Vec<usize> = (1..NODES).step_by(2).map(|step| (holder + step) % NODES).take(3).collect();
        for &number in &gone {
            begun.end(number);
        }
        scene.cluster.member_mut(gone[0]).kill();
        scene.cluster.member_mut(gone[1]).kill();
        scene.cluster.member(gone[2]).cut()?;
        begun.finish(scene).await
    })
    .await?;
    variant(times, "upstream goes when a copy has left it", 1.4, true, async |scene| {
        let begun = scene.begin(&all(&[]))?;
        scene.has_given_all().await?;
        scene.registry.refuse();
        begun.finish(scene).await
    })
    .await?;
    wrong_bytes(times).await?;
    rolling(times).await
}

/// Runs one of them, and says how it was: the median of the slowest node by what one download must take, and upstream's
/// own counts, the worst of all runs.
async fn variant(
    times: usize,
    name: &str,
    target: f64,
    stalls: bool,
    what: impl AsyncFn(&mut Scene) -> Result<Run>,
) -> Result<()> {
    if !asked_for(name) {
        return Ok(());
    }
    let (mut last, mut copies, mut manifests, mut failed) = (Vec::new(), 0.0_f64, 0, 0);
    let mut ideal = 0.0;
    for seed in 0..times {
        let mut scene = Scene::set(name, seed as u64, 1).await?;
        ideal = scene.ideal();
        let run = what(&mut scene).await.with_context(|| name.to_owned())?;
        last.push(run.last / ideal);
        copies = copies.max(run.copies);
        manifests = manifests.max(run.manifests);
        failed += run.failed.len();
        print!("{}", run.failed);
    }
    let limit = if stalls { target + 2.0 * STALL.as_secs_f64() / ideal } else { target };
    let most = if stalls { 1.1 } else { 1.02 };
    println!(
        "  {name:40} last ÷ ideal {} (≤ {limit:.2}), {copies:.3} copies (≤ {most}), {manifests} manifest GETs, {failed} \
         failed",
        Median::of(&last)
    );
    Ok(())
}

/// The first of two upstreams sends wrong bytes. Who fails tries again, once.
async fn wrong_bytes(times: usize) -> Result<()> {
    let name = "the first upstream sends wrong bytes";
    if !asked_for(name) {
        return Ok(());
    }
    let (mut last, mut retries, mut failed) = (Vec::new(), 0, 0);
    for seed in 0..times {
        let mut scene = Scene::set(name, seed as u64, 2).await?;
        scene.registry.fault(When::get(scene.image.largest()), Fault::WrongByte(20_000_000));
        let run = scene.pull(&[]).await?;
        retries += run.failed.len();
        let numbers: Vec<usize> = run.failed.iter().map(|(number, _)| *number).collect();
        let again = scene.begin(&numbers)?.finish(&scene).await?;
        failed += again.failed.len();
        for member in scene.cluster.members() {
            member.agent.say(&["cache", "verify"]).await?;
        }
        last.push((run.last + again.last) / scene.ideal());
    }
    let last = Median::of(&last);
    println!("  {name:40} last ÷ ideal {last}, {retries} retries, {failed} failed after them (0), nothing wrong kept");
    Ok(())
}

/// One has it; the others come one after the other.
async fn rolling(times: usize) -> Result<()> {
    if !asked_for("rolling") {
        return Ok(());
    }
    let (mut each, mut bytes, mut failed) = (Vec::new(), 0, 0);
    for seed in 0..times {
        let scene = Scene::set("rolling", seed as u64, 1).await?;
        scene.begin(&[0])?.finish(&scene).await?;
        scene.registry.clear_log();
        for number in 1..NODES {
            let run = scene.begin(&[number])?.finish(&scene).await?;
            each.push(run.last / scene.ideal());
            failed += run.failed.len();
        }
        bytes += scene.registry.sent("/blobs/");
    }
    let (worst, each) = (each.iter().copied().fold(0.0, f64::max), Median::of(&each));
    println!(
        "  {:40} each ÷ ideal {each}, the worst {worst:.3} (≤ 1.1), {bytes} blob bytes of upstream (0), {failed} failed",
        "rolling"
    );
    Ok(())
}

/// What each link passes, in Mbit/s.
fn link() -> u64 {
    std::env::var("LARDER_BENCH_LINK").ok().and_then(|text| text.parse().ok()).unwrap_or(LINK)
}

/// What the link of a slow node passes: a fifth.
fn slow() -> Rate {
    Rate::mbit(link() / 5)
}

/// Every node but these.
fn all(but: &[usize]) -> Vec<usize> {
    (0..NODES).filter(|number| !but.contains(number)).collect()
}
