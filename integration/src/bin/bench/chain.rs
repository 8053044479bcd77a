//! What it costs that the first of two upstreams is dead, and what a long run of random ills does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_integration::{
    Agent, AgentConfig, Failover, Fault, FaultRegistry, Folder, Image, Puller, Trial, When, free_port,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::stats::Median;

/// How many registries have a first upstream that refuses; and one that is silent.
const REFUSING: usize = 30;
const SILENT: usize = 5;
/// Requests after the first.
const LATER: usize = 200;

/// The time to the head of a tag's answer, beyond that of a registry whose one upstream is well.
pub(crate) async fn chain() -> Result<()> {
    let (folder, well) = (Folder::new()?, FaultRegistry::start().await?);
    well.add(&Image::tiny(1), "acme/app", "v1");
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry("well.test", &[&well.url()]);
    for n in 0..REFUSING {
        let nobody = format!("http://127.0.0.1:{}", free_port()?);
        config.registry(&format!("refusing{n}.test"), &[&nobody, &well.url()]);
    }
    let mut silent = Vec::new();
    for n in 0..SILENT {
        let registry = FaultRegistry::start().await?;
        registry.fault(When::any(), Fault::Silent);
        config.registry(&format!("silent{n}.test"), &[&registry.url(), &well.url()]);
        silent.push(registry);
    }
    let agent = Agent::start(&folder.path().join("agent"), &config).await?;

    let usual = Median::of(&times(&agent, "well.test", LATER).await?).middle;
    println!("\nthe head of a tag's answer, its one upstream well: {usual:.2} ms; beyond that, of two upstreams");
    let (first, later) = first_and_later(&agent, "refusing", REFUSING).await?;
    say("the first refuses, first time", &first, usual, 50.0);
    say("the first refuses, later", &later, usual, 1.0);
    let (first, later) = first_and_later(&agent, "silent", SILENT).await?;
    say("the first is silent, first time", &first, usual, 2000.0);
    say("the first is silent, later", &later, usual, 1.0);
    Ok(())
}

/// Random ills for `LARDER_SOAK_SECONDS` (60), from `LARDER_SEED` (which is printed). Fails when a pull does.
pub(crate) async fn soak() -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
    let limit = Duration::from_secs(variable("LARDER_SOAK_SECONDS")?.unwrap_or(60));
    let seed = variable("LARDER_SEED")?.unwrap_or_else(rand::random);
    println!("\nsoak: random ills of a first upstream for {} s, LARDER_SEED={seed}", limit.as_secs());
    let (mut random, begun) = (StdRng::seed_from_u64(seed), Instant::now());
    let (mut pulls, mut met, mut failed) = (0, 0, 0);
    while begun.elapsed() < limit {
        // With a cache of its own, all of which is looked through at the end.
        let failover = Failover::start(4).await?;
        let trials = std::iter::from_fn(|| (begun.elapsed() < limit).then(|| Trial::any(&mut random)));
        let summary = failover.pull_all(trials.take(Failover::PULLS), 8).await;
        println!("  {summary}");
        failover.ensure_nothing_wrong_is_kept().await?;
        pulls += summary.pulls;
        met += summary.met;
        failed += summary.failures.len();
    }
    ensure!(failed == 0, "{failed} pulls failed");
    ensure!(met * 3 > pulls, "only {met} of {pulls} pulls met an upstream that failed");
    Ok(())
}

/// In milliseconds: the first request of each registry, and those after it of all of them.
async fn first_and_later(agent: &Agent, name: &str, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for n in 0..count {
        let times = times(agent, &format!("{name}{n}.test"), 1 + LATER / count).await?;
        first.push(times[0]);
        later.extend_from_slice(&times[1..]);
    }
    Ok((first, later))
}

/// In milliseconds, one request after the other.
async fn times(agent: &Agent, registry: &str, count: usize) -> Result<Vec<f64>> {
    let puller = Puller::new(agent, registry, None);
    let mut times = Vec::new();
    for _ in 0..count {
        let reply = puller.head("acme/app", "manifests/v1").await.with_context(|| registry.to_owned())?;
        times.push(reply.expect(http::StatusCode::OK)?.to_head.as_secs_f64() * 1000.0);
    }
    Ok(times)
}

fn say(what: &str, times: &[f64], usual: f64, target: f64) {
    let most = times.iter().copied().fold(0.0, f64::max) - usual;
    println!("  {what:32} {:.2} ms, at most {most:.2} (target: {target} ms)", Median::of(times).middle - usual);
}
