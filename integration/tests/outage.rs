//! Something is gone: the registry, the agent, its files.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use larder_integration::{Agent, Fault, FaultRegistry, Image, Node, Registry, When, until};

use crate::support::{Case, asked_by_agent, ensure_only_the_agent_asked, on_every_containerd};

on_every_containerd!(the_registry_is_stopped_and_containerd_wiped, the_agent_is_stopped, the_agent_is_frozen);
on_every_containerd!(over tls:
    the_registry_fails_in_other_ways,
    the_real_registry_is_stopped,
    the_agents_files_are_deleted,
    containerd_is_started_again,
    the_agent_is_started_again,
);

/// What was pulled once can be pulled again: by tag, by digest, the platform of an index.
async fn the_registry_is_stopped_and_containerd_wiped(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let (image, index) = (Image::many_layers(1, 3, 3000), Image::index(2, 6));
    registry.add(&image, "acme/app", "v1");
    registry.add(&index, "acme/index", "v1");
    let node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.pull("reg.test/acme/index:v1").await?;

    registry.refuse();
    node.containerd.wipe().await?;
    ensure!(node.containerd.pull("reg.test/acme/app:v1").await? == image.blobs()[0].digest);
    node.containerd.pull("reg.test/acme/index:v1").await?;
    node.containerd.wipe().await?;
    node.containerd.pull(&format!("reg.test/acme/app@{}", image.root().digest)).await?;

    // That the tag's answer is an old one is said and counted.
    let agent = node.agent()?;
    let url = format!("{}/v2/acme/app/manifests/v1?ns=reg.test", agent.mirror());
    let reply = agent.http().head(&url).await?.expect(http::StatusCode::OK)?;
    ensure!(reply.header("docker-content-digest") == image.root().digest);
    ensure!(reply.header("warning").starts_with("110 "), "{reply:?}");
    ensure!(agent.metrics().await?.sum("larder_tag_answers_total", &["result=\"stale\""]) >= 2.0);

    // What never came can't be given, and nobody waits long for that.
    let begun = Instant::now();
    ensure!(node.containerd.pull("reg.test/acme/never:v1").await.is_err());
    ensure!(begun.elapsed() < Duration::from_secs(15));

    // Back again, it is asked again.
    registry.accept()?;
    let new = Image::tiny(3);
    registry.add(&new, "acme/app", "v1");
    ensure!(node.containerd.pull("reg.test/acme/app:v1").await? == new.blobs()[0].digest);
    Ok(())
}

/// Errors of every kind that are no answer: the last known one is given.
async fn the_registry_fails_in_other_ways(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(4, 1);
    registry.add(&image, "acme/app", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set_text("mirror", "header_timeout", "1s");
    let node = builder.start().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    let slow = vec![("retry-after".to_owned(), "3600".to_owned())];
    for fault in [Fault::status(500), Fault::status(503), Fault::status(408), Fault::Silent, Fault::Status(429, slow)] {
        registry.heal();
        registry.fault(When::any(), fault.clone());
        node.containerd.wipe().await?;
        let begun = Instant::now();
        let pulled = node.containerd.pull("reg.test/acme/app:v1").await;
        ensure!(pulled.is_ok(), "{fault:?}: {pulled:?}");
        ensure!(begun.elapsed() < Duration::from_secs(20), "{fault:?} took {:?}", begun.elapsed());
    }
    Ok(())
}

async fn the_real_registry_is_stopped(case: Case) -> Result<()> {
    let mut registry = Registry::start().await?;
    let image = Image::many_layers(5, 5, 1000);
    registry.push(&image, "acme/app", "v1").await?;
    let node = case.builder()?.registry("reg.test", &registry.url())?.start().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    registry.stop();
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;

    registry.start_again().await?;
    let other = Image::tiny(6);
    registry.push(&other, "acme/app", "v2").await?;
    node.containerd.pull("reg.test/acme/app:v2").await?;
    Ok(())
}

/// Stopped, and killed: containerd goes to its upstream at once.
async fn the_agent_is_stopped(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (one, two) = (Image::one_layer(7, 6), Image::one_layer(8, 6));
    registry.add(&one, "acme/one", "v1");
    registry.add(&two, "acme/two", "v1");
    let mut node = case.node(&registry).await?;
    node.agent_mut()?.stop()?;
    ensure_upstream_gives(&node, &registry, "reg.test/acme/one:v1", Duration::from_secs(10)).await?;
    node.agent_mut()?.start_again().await?;
    node.agent_mut()?.kill();
    ensure_upstream_gives(&node, &registry, "reg.test/acme/two:v1", Duration::from_secs(10)).await
}

/// The kernel goes on to accept its connections, and nothing answers: that must end within seconds.
async fn the_agent_is_frozen(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    for seed in [9, 30] {
        registry.add(&Image::one_layer(seed, 6), &format!("acme/app{seed}"), "v1");
    }
    let mut node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app9:v1").await?;
    node.agent()?.freeze()?;
    let begun = Instant::now();
    node.containerd.pull("reg.test/acme/app30:v1").await?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "took {:?}", begun.elapsed());
    // It was ended for that, so that whoever watches over it (systemd, kubelet) can start it again.
    let agent = node.agent_mut()?;
    until("the frozen agent is ended", Duration::from_secs(10), async || (!agent.is_running()).then_some(())).await?;
    agent.start_again().await
}

/// The cache's folder, with the certificates, and then the entry's copy of the CA.
async fn the_agents_files_are_deleted(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    for seed in 10..15 {
        registry.add(&Image::one_layer(seed, 5), &format!("acme/app{seed}"), "v1");
    }
    let mut node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app10:v1").await?;

    std::fs::remove_dir_all(node.agent()?.cache())?;
    node.containerd.pull("reg.test/acme/app11:v1").await?;
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app10:v1").await?;

    // The node's CA is a new one after this.
    node.agent_mut()?.stop()?;
    let _ = std::fs::remove_dir_all(node.agent()?.cache());
    node.containerd.pull("reg.test/acme/app12:v1").await?;
    node.agent_mut()?.start_again().await?;
    ensure_comes_to_us(node.agent()?).await?;
    registry.clear_log();
    node.containerd.pull("reg.test/acme/app13:v1").await?;
    ensure_only_the_agent_asked(&registry)?;

    // A copy of the CA that is missing fails every pull: it is put back before anyone gets that far, or soon after.
    let entry = node.hosts_dir().join("reg.test");
    let copies = std::fs::read_dir(&entry)?.flatten().map(|file| file.path());
    let copies: Vec<_> = copies.filter(|path| path.extension().is_some_and(|name| name == "pem")).collect();
    ensure!(!copies.is_empty());
    for copy in &copies {
        std::fs::remove_file(copy)?;
    }
    until("the copy of the CA is back", Duration::from_secs(20), async || {
        copies.iter().all(|copy| copy.exists()).then_some(())
    })
    .await?;
    node.containerd.pull("reg.test/acme/app14:v1").await?;
    Ok(())
}

async fn containerd_is_started_again(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    registry.add(&Image::tiny(20), "acme/one", "v1");
    registry.add(&Image::tiny(21), "acme/two", "v1");
    let mut node = case.node(&registry).await?;
    ensure_comes_to_us(node.agent()?).await?;
    let proved = canaries_used(node.agent()?).await?;
    node.containerd.pull("reg.test/acme/one:v1").await?;
    node.containerd.kill();
    node.containerd.start_again().await?;
    node.containerd.pull("reg.test/acme/two:v1").await?;
    ensure_only_the_agent_asked(&registry)?;
    // The canary proves it again.
    let agent = node.agent()?;
    until("the canary arrives again", Duration::from_secs(30), async || {
        (canaries_used(agent).await.ok()? > proved).then_some(())
    })
    .await?;
    Ok(())
}

/// What it had, it has again, and answers about tags as well.
async fn the_agent_is_started_again(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let image = Image::many_layers(22, 4, 1500);
    registry.add(&image, "acme/app", "v1");
    let mut node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    registry.refuse();
    for harshly in [false, true] {
        match harshly {
            true => node.agent_mut()?.kill(),
            false => node.agent_mut()?.stop()?,
        }
        node.agent_mut()?.start_again().await?;
        node.containerd.wipe().await?;
        node.containerd.pull("reg.test/acme/app:v1").await?;
    }
    Ok(())
}

async fn ensure_upstream_gives(node: &Node, registry: &FaultRegistry, image: &str, limit: Duration) -> Result<()> {
    registry.clear_log();
    let begun = Instant::now();
    node.containerd.pull(image).await?;
    ensure!(begun.elapsed() < limit, "took {:?}", begun.elapsed());
    ensure!(!registry.requests().iter().any(asked_by_agent));
    Ok(())
}

/// Waits until a canary has proved that containerd comes to the agent.
async fn ensure_comes_to_us(agent: &Agent) -> Result<()> {
    until("the canary arrives", Duration::from_secs(30), async || {
        (agent.metrics().await.ok()?.sum("larder_canary_success", &[]) == 1.0).then_some(())
    })
    .await
}

async fn canaries_used(agent: &Agent) -> Result<f64> {
    Ok(agent.metrics().await?.sum("larder_canary_runs_total", &["result=\"used\""]))
}
