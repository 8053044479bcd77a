//! Upstream does wrong in the middle of a pull.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_integration::{Cut, Fault, FaultRegistry, Image, Node, When};

use crate::support::{Case, ensure_only_the_agent_asked, on_every_containerd};

on_every_containerd!(a_body_that_ends_early_is_taken_up, the_pull_after_a_corrupt_one_succeeds_at_once,);
on_every_containerd!(over tls:
    a_body_that_stalls_is_left,
    lies_never_reach_the_store,
    odd_but_right_answers_are_taken,
    errors_are_passed_on_at_once,
    redirects_are_followed_where_they_may,
    tokens_are_fetched_once,
);

async fn node_with(case: Case, registry: &FaultRegistry) -> Result<Node> {
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set_text("mirror", "stall_timeout", "1s").set_text("mirror", "header_timeout", "2s");
    builder.start().await
}

/// containerd sees one body; upstream is asked for what is missing, not for what came.
async fn a_body_that_ends_early_is_taken_up(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let node = node_with(case, &registry).await?;
    for (seed, cut) in [(1, Cut::Close), (2, Cut::Reset)] {
        let image = Image::one_layer(seed, 16);
        let name = format!("acme/cut{seed}");
        registry.add(&image, &name, "v1");
        registry.fault(When::get(image.largest()).first(1), Fault::CutAt(12 << 20, cut));
        node.containerd.pull(&format!("reg.test/{name}:v1")).await.with_context(|| format!("{cut:?}"))?;
        let (sent, length) = (registry.sent(&image.largest().digest), image.largest().bytes.len() as u64);
        // A reset takes along what the kernel held on both sides.
        let lost = if cut == Cut::Reset { 8 << 20 } else { 2 << 20 };
        ensure!(sent <= length + lost, "{cut:?}: {sent} bytes were sent of {length}");
    }
    ensure_only_the_agent_asked(&registry)
}

async fn a_body_that_stalls_is_left(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let node = node_with(case, &registry).await?;
    let image = Image::one_layer(3, 16);
    registry.add(&image, "acme/app", "v1");
    registry.fault(When::get(image.largest()).first(1), Fault::StallAt(5 << 20));
    let begun = Instant::now();
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "took {:?}", begun.elapsed());
    let sent = registry.sent(&image.largest().digest);
    ensure!(sent <= image.largest().bytes.len() as u64 + (2 << 20), "{sent} bytes were sent");
    ensure_only_the_agent_asked(&registry)
}

/// Small and large blobs, at the start, in the middle, and in the last byte.
async fn the_pull_after_a_corrupt_one_succeeds_at_once(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let node = case.node_of_the_agent_alone(&registry).await?;
    for (seed, mebibytes, from_the_end) in [(4, 1, None), (5, 12, Some(1)), (6, 12, Some(6 << 20)), (7, 12, None)] {
        let image = Image::one_layer(seed, mebibytes);
        let length = image.largest().bytes.len() as u64;
        let name = format!("acme/corrupt{seed}");
        registry.add(&image, &name, "v1");
        let at = from_the_end.map_or(0, |from_the_end| length - from_the_end);
        registry.fault(When::get(image.largest()), Fault::WrongByte(at));
        let name = format!("reg.test/{name}:v1");
        ensure!(node.containerd.pull(&name).await.is_err(), "seed {seed}: wrong bytes were taken for right");
        registry.heal();
        node.containerd.pull(&name).await.with_context(|| format!("seed {seed}: the pull after a corrupt one"))?;
    }
    Ok(())
}

/// Lengths and digests that aren't true: the pull may fail, the next one succeeds, and what is kept is right.
async fn lies_never_reach_the_store(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let node = case.node_of_the_agent_alone(&registry).await?;
    let other = Image::tiny(99).root().digest.clone();
    let lies = [
        Fault::Short(10),
        Fault::Long(10),
        Fault::Length(10),
        Fault::Length(-10),
        Fault::Header("docker-content-digest".into(), other),
        Fault::Header("content-type".into(), "text/html".into()),
        Fault::Gzip,
    ];
    let images: Vec<Image> = (0..lies.len() as u64).map(|n| Image::one_layer(100 + n, 6)).collect();
    for (n, (image, lie)) in images.iter().zip(&lies).enumerate() {
        registry.add(image, &format!("acme/lie{n}"), "v1");
        registry.heal();
        registry.fault(When::path(&format!("acme/lie{n}/")), lie.clone());
        let name = format!("reg.test/acme/lie{n}:v1");
        let _ = node.containerd.pull(&name).await;
        registry.heal();
        node.containerd.pull(&name).await.with_context(|| format!("the pull after {lie:?}"))?;
    }
    registry.refuse();
    node.containerd.wipe().await?;
    for (n, lie) in lies.iter().enumerate() {
        node.containerd
            .pull(&format!("reg.test/acme/lie{n}:v1"))
            .await
            .with_context(|| format!("kept after {lie:?}"))?;
    }
    Ok(())
}

/// What the specs allow and clients forget.
async fn odd_but_right_answers_are_taken(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let node = node_with(case, &registry).await?;
    for (n, fault) in
        [Fault::Chunked, Fault::UntilClose, Fault::SlowHead(Duration::from_secs(1))].into_iter().enumerate()
    {
        let image = Image::one_layer(200 + n as u64, 6);
        registry.add(&image, &format!("acme/odd{n}"), "v1");
        registry.fault(When::get(image.largest()), fault.clone());
        node.containerd.pull(&format!("reg.test/acme/odd{n}:v1")).await.with_context(|| format!("{fault:?}"))?;
    }
    // Cut, and then all of it again in the place of the range.
    let image = Image::one_layer(210, 8);
    registry.add(&image, "acme/whole", "v1");
    registry.fault(When::get(image.largest()).first(1), Fault::CutAt(3 << 20, Cut::Close));
    registry.fault(When::get(image.largest()), Fault::NoRange);
    node.containerd.pull("reg.test/acme/whole:v1").await?;
    // HEAD isn't answered as it should be.
    let image = Image::tiny(211);
    registry.add(&image, "acme/nohead", "v1");
    registry.fault(When::path("acme/nohead/").method("HEAD"), Fault::status(405));
    node.containerd.pull("reg.test/acme/nohead:v1").await?;
    ensure_only_the_agent_asked(&registry)
}

/// Nothing has it: the pull fails soon and with few requests, and says what upstream said.
async fn errors_are_passed_on_at_once(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(300, 1);
    registry.add(&image, "acme/app", "v1");
    let node = node_with(case, &registry).await?;
    let slow = vec![("retry-after".to_owned(), "1".to_owned())];
    for fault in
        [Fault::status(404), Fault::status(403), Fault::Status(429, slow), Fault::status(408), Fault::status(503)]
    {
        registry.heal();
        registry.clear_log();
        registry.fault(When::any(), fault.clone());
        let begun = Instant::now();
        ensure!(node.containerd.pull("reg.test/acme/app:v1").await.is_err());
        ensure!(begun.elapsed() < Duration::from_secs(10), "{fault:?} took {:?}", begun.elapsed());
        // containerd itself goes on to upstream, and repeats some there.
        let requests = registry.requests().iter().filter(|request| crate::support::asked_by_agent(request)).count();
        ensure!(requests <= 4, "{fault:?}: the agent asked {requests} times");
    }
    registry.heal();
    // 429 may have closed the upstream for the second that it asked for.
    larder_integration::until("it is pulled again", Duration::from_secs(10), async || {
        node.containerd.pull("reg.test/acme/app:v1").await.ok()
    })
    .await?;
    Ok(())
}

/// To a place that the configuration names, yes; to any other on loopback, no; for ever, no.
async fn redirects_are_followed_where_they_may(case: Case) -> Result<()> {
    let (registry, named, unnamed) =
        (FaultRegistry::start().await?, FaultRegistry::start().await?, FaultRegistry::start().await?);
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.registry("cdn.test", &[&named.url()]);
    let node = builder.start().await?;
    for (seed, cdn) in [(400, &named), (401, &unnamed)] {
        let image = Image::one_layer(seed, 6);
        let repository = format!("acme/app{seed}");
        registry.add(&image, &repository, "v1");
        cdn.add(&image, &repository, "v1");
        let there = format!("{}/v2/{repository}/blobs/{}", cdn.url(), image.largest().digest);
        registry.fault(When::get(image.largest()), Fault::Redirect(there));
    }
    node.containerd.pull("reg.test/acme/app400:v1").await?;
    ensure!(named.count("GET", "/blobs/") == 1);

    // containerd itself follows it then; the agent must not have.
    let _ = node.containerd.pull("reg.test/acme/app401:v1").await;
    ensure!(!unnamed.requests().iter().any(crate::support::asked_by_agent), "{:?}", unnamed.requests());

    let image = Image::one_layer(402, 6);
    registry.add(&image, "acme/loop", "v1");
    let there = format!("{}/v2/acme/loop/blobs/{}", registry.url(), image.largest().digest);
    registry.fault(When::get(image.largest()), Fault::Redirect(there));
    let begun = Instant::now();
    ensure!(node.containerd.pull("reg.test/acme/loop:v1").await.is_err());
    ensure!(begun.elapsed() < Duration::from_secs(10));
    Ok(())
}

/// An anonymous token is enough, one is fetched for all who need it, and it is kept.
async fn tokens_are_fetched_once(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::many_layers(500, 6, 200);
    registry.add(&image, "acme/app", "v1");
    registry.challenge(Some(larder_integration::Challenge::bearer().open("*")));
    let node = node_with(case, &registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure_only_the_agent_asked(&registry)?;
    let tokens = registry.count("GET", "/token");
    ensure!(tokens == 1, "{tokens} tokens were fetched");
    Ok(())
}
