//! What is kept of what containerd has: at no cost of disk, for as long as it is wanted.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use larder_integration::{
    Agent, AgentConfig, Blob, Challenge, Disk, Fault, FaultRegistry, Folder, Image, Labels, Login, Node, When, until,
};
use serde_json::Value;

use crate::support::{Case, ensure_only_the_agent_asked, on_every_containerd, run};

on_every_containerd!(over tls:
    what_is_there_already_is_kept_at_no_cost,
    a_pull_costs_nothing_twice,
    what_containerd_drops_is_still_served,
    what_another_repository_names_stays_private,
    what_went_while_no_agent_ran_is_noticed,
    what_cant_be_linked_is_used_where_it_is,
    what_containerd_drops_above_the_mark_goes,
    patterns_and_prefetches_are_fetched,
    what_is_unused_expires,
    what_is_ignored_passes_through,
);
on_every_containerd!(over tls by one: what_is_long_unused_is_kept_and_not_watched);

/// What containerd holds is adopted within this time, on a slow machine too.
pub(crate) const ADOPTED: Duration = Duration::from_secs(60);
/// containerd collects garbage when it likes, and expiry is looked for every now and then.
pub(crate) const GONE: Duration = Duration::from_secs(60);
/// What can't be fetched is tried again within about half a minute.
pub(crate) const TRIED_AGAIN: Duration = Duration::from_secs(90);
/// What the index and the rest of the books take on the disk, at the most: 1 % of 512 MiB, the least that has to stay
/// within 1 %.
const BOOKS: u64 = 5 << 20;

/// Installed on a node that runs images already: all of them are whole, nothing is downloaded, and no disk is used.
async fn what_is_there_already_is_kept_at_no_cost(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let images = [Image::many_layers(1, 4, 4000), Image::index(2, 8), Image::one_layer(3, 16)];
    let builder = case.builder()?.without_agent().registry("reg.test", &registry.url())?;
    for (n, image) in images.iter().enumerate() {
        registry.add(image, &format!("acme/app{n}"), "v1");
    }
    let mut node = builder.start().await?;
    for n in 0..images.len() {
        node.containerd.pull(&format!("reg.test/acme/app{n}:v1")).await?;
    }
    registry.clear_log();
    let before = used(&[&node.containerd.root()])?;
    node.install_agent().await?;
    let names: Vec<String> = (0..images.len()).map(|n| format!("reg.test/acme/app{n}:v1")).collect();
    for name in &names {
        whole(node.agent()?, name).await?;
    }
    settled(node.agent()?).await?;
    until("every one is protected", ADOPTED, async || {
        let metrics = node.agent().ok()?.metrics().await.ok()?;
        (metrics.sum("larder_image_protected", &[]) == images.len() as f64).then_some(())
    })
    .await?;
    let after = used(&[&node.containerd.root(), &node.agent()?.cache().join("blobs")])?;
    ensure!(after <= before + before / 100, "{before} bytes were used before, {after} after");
    let all = used(&[&node.containerd.root(), &node.agent()?.cache()])?;
    ensure!(all <= after + BOOKS, "{} bytes are no blobs", all - after);
    ensure!(
        registry.count("GET", "/blobs/") == 0 && registry.count("GET", "/manifests/") == 0,
        "something was fetched"
    );
    Ok(())
}

/// Our own copy gives way to containerd's.
async fn a_pull_costs_nothing_twice(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::many_layers(4, 3, 12_000);
    registry.add(&image, "acme/app", "v1");
    let node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    whole(node.agent()?, "reg.test/acme/app:v1").await?;
    settled(node.agent()?).await?;
    let theirs = used(&[&node.containerd.root()])?;
    let both = used(&[&node.containerd.root(), &node.agent()?.cache().join("blobs")])?;
    ensure!(both <= theirs + theirs / 100, "containerd alone uses {theirs}, both use {both}");
    let all = used(&[&node.containerd.root(), &node.agent()?.cache()])?;
    ensure!(all <= theirs + BOOKS, "{} bytes more than containerd's, {} of them of blobs", all - theirs, both - theirs);
    Ok(())
}

/// Pulled before the agent came, dropped by containerd, and the registry is gone: it is pulled from what was adopted. That
/// holds for what anybody may have, and not for what may be somebody's alone.
async fn what_containerd_drops_is_still_served(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let image = Image::many_layers(5, 3, 3000);
    registry.add(&image, "acme/app", "v1");
    let builder = case.builder()?.without_agent().registry("reg.test", &registry.url())?;
    let mut node = builder.start().await?;
    let digest = &image.root().digest;
    node.containerd.pull(&format!("reg.test/acme/app@{digest}")).await?;
    node.install_agent().await?;
    whole(node.agent()?, &format!("reg.test/acme/app@{digest}")).await?;
    // Once, as nobody in particular: it opens to anybody.
    until("the registry is asked", ADOPTED, async || (registry.count("HEAD", "/manifests/") > 0).then_some(())).await?;
    public(node.agent()?, &image).await?;
    node.containerd.wipe().await?;
    registry.refuse();
    node.containerd.pull(&format!("reg.test/acme/app@{digest}")).await.context("from what was adopted")?;

    // What came with credentials stays private.
    registry.accept()?;
    let private = Image::one_layer(6, 2);
    registry.add(&private, "acme/private", "v1");
    registry.challenge(Some(Challenge::bearer().account("alice", "secret", "acme/private").open("acme/app")));
    let alice = Login::password("alice", "secret");
    node.containerd.pull_as("reg.test/acme/private:v1", &alice).await?;
    whole(node.agent()?, "reg.test/acme/private:v1").await?;
    let url = format!("{}/v2/acme/private/blobs/{}?ns=reg.test", node.agent()?.mirror(), private.largest().digest);
    ensure!(node.agent()?.http().get(&url).await?.status == 401, "it was given to nobody in particular");
    Ok(())
}

/// Anybody's manifest can name somebody's layer. containerd, which has the layer, calls that repository a source of it
/// without ever asking for it there. It is anybody's if that repository gives it to anybody, and stays private if not.
async fn what_another_repository_names_stays_private(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let (named, given) = (Image::one_layer(17, 2), Image::one_layer(18, 2));
    for (tag, image) in [("named", &named), ("given", &given)] {
        registry.add(image, "acme/private", tag);
        registry.add(image, "acme/app", tag);
    }
    for blob in named.blobs() {
        registry.fault(When::path(&format!("/acme/app/blobs/{}", blob.digest)), Fault::Status(404, Vec::new()));
    }
    registry.challenge(Some(Challenge::bearer().account("alice", "secret", "acme/private").open("acme/app")));
    let node = case.node(&registry).await?;
    let alice = Login::password("alice", "secret");
    for tag in ["named", "given"] {
        node.containerd.pull_as(&format!("reg.test/acme/private:{tag}"), &alice).await?;
        whole(node.agent()?, &format!("reg.test/acme/private:{tag}")).await?;
        node.containerd.pull(&format!("reg.test/acme/app:{tag}")).await.context("of which containerd has all")?;
    }
    let answered = |image: &Image, status: u16| {
        let path = format!("/v2/acme/app/blobs/{}", image.largest().digest);
        registry.requests().iter().any(|request| {
            request.method == "HEAD" && request.path() == path && request.status == status && request.finished
        })
    };
    until("the registry is asked for both as nobody", ADOPTED, async || {
        (answered(&named, 404) && answered(&given, 200)).then_some(())
    })
    .await?;
    let mirror = node.agent()?.mirror();
    let url = |image: &Image| format!("{mirror}/v2/acme/app/blobs/{}?ns=reg.test", image.largest().digest);
    registry.refuse();
    let http = node.agent()?.http();
    until("what is given to anybody is anybody's", ADOPTED, async || {
        (http.get(&url(&given)).await.ok()?.status == 200).then_some(())
    })
    .await?;
    ensure!(http.get(&url(&named)).await?.status != 200, "somebody's layer was given to anybody");
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:given").await.context("without the registry")?;
    ensure!(node.containerd.pull("reg.test/acme/app:named").await.is_err(), "somebody's layer was given to anybody");
    Ok(())
}

/// containerd drops an image while no agent runs. What was linked is ours alone then, and counted so; it is still served.
async fn what_went_while_no_agent_ran_is_noticed(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let image = Image::one_layer(19, 8);
    registry.add(&image, "acme/app", "v1");
    let mut node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    whole(node.agent()?, "reg.test/acme/app:v1").await?;
    settled(node.agent()?).await?;
    node.agent_mut()?.stop()?;
    remove(&node, "acme/app", &image).await?;
    gone_at_containerd(&node, &image).await?;
    node.agent_mut()?.start_again().await?;
    until("it counts as ours", ADOPTED, async || {
        let metrics = node.agent().ok()?.metrics().await.ok()?;
        let (own, shared) = (metrics.sum("larder_store_bytes", &[]), metrics.sum("larder_store_shared_bytes", &[]));
        (own >= image.largest().bytes.len() as f64 && shared == 0.0).then_some(())
    })
    .await?;
    registry.refuse();
    node.containerd.pull("reg.test/acme/app:v1").await.context("from what is ours")?;
    Ok(())
}

/// The cache is on another filesystem than containerd's folder: what containerd holds is used from there, at no cost of
/// disk, and nothing is said to be here that it dropped while no agent ran.
async fn what_cant_be_linked_is_used_where_it_is(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(20, 8);
    registry.add(&image, "acme/app", "v1");
    // The layer wouldn't fit.
    let disk = Disk::small(6)?;
    let mut builder = case.builder()?.without_agent().registry("reg.test", &registry.url())?;
    builder.agent.set_path("cache", "dir", &disk.path().join("larder"));
    let mut node = builder.start().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    registry.clear_log();
    node.install_agent().await?;
    whole(node.agent()?, "reg.test/acme/app:v1").await?;
    let url = format!("{}/v2/acme/app/blobs/{}?ns=reg.test", node.agent()?.mirror(), image.largest().digest);
    let asked_for = format!("/blobs/{}", image.largest().digest);
    until("it is anybody's", ADOPTED, async || (registry.count("HEAD", &asked_for) > 0).then_some(())).await?;
    let reply = node.agent()?.http().get(&url).await?;
    ensure!(reply.status == 200 && reply.body == image.largest().bytes, "it was served as {}", reply.status);
    ensure!(registry.count("GET", "/blobs/") == 0, "something was fetched");
    node.agent_mut()?.stop()?;
    remove(&node, "acme/app", &image).await?;
    gone_at_containerd(&node, &image).await?;
    node.agent_mut()?.start_again().await?;
    until("nothing is said to be here", ADOPTED, async || {
        let metrics = node.agent().ok()?.metrics().await.ok()?;
        (metrics.sum("larder_store_shared_bytes", &[]) == 0.0).then_some(())
    })
    .await?;
    ensure!(kept(node.agent()?, "reg.test/acme/app:v1").await.is_none_or(|image| image["whole"] == false));
    Ok(())
}

/// The disk is above its mark, and containerd drops an image: its bytes are free at once.
async fn what_containerd_drops_above_the_mark_goes(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (dropped, kept) = (Image::one_layer(7, 12), Image::builder(8).layer(12 << 20).program()?.build());
    registry.add(&dropped, "acme/dropped", "v1");
    registry.add(&kept, "acme/kept", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    // Fuller than that by what others have on it.
    builder.agent.set("cache", "max_disk_percent", "1");
    builder.agent.set("cache", "expire_unused", "\"30d\"");
    let node = builder.start().await?;
    for name in ["dropped", "kept"] {
        node.containerd.pull(&format!("reg.test/acme/{name}:v1")).await?;
    }
    node.containerd.run("reg.test/acme/kept:v1", &Labels::of_container("default", "web", "app")).await?;
    let agent = node.agent()?;
    until("both are linked", ADOPTED, async || {
        (is_linked(agent, dropped.largest()) && is_linked(agent, kept.largest())).then_some(())
    })
    .await?;
    remove(&node, "acme/dropped", &dropped).await?;
    until("our link is gone too", GONE, async || (!stored(agent, dropped.largest()).exists()).then_some(())).await?;
    ensure!(stored(agent, kept.largest()).exists(), "what runs was dropped");
    Ok(())
}

/// What the configuration names is there before anything runs, and what somebody prefetches; both are served with the
/// registry gone.
async fn patterns_and_prefetches_are_fetched(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let images = [("kept", Image::index(9, 2)), ("wanted", Image::many_layers(10, 2, 1500))];
    for (name, image) in &images {
        registry.add(image, &format!("acme/{name}"), "v1");
    }
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set("cache", "keep", r#"["reg.test/acme/kept:v1"]"#);
    let mut node = builder.start().await?;
    whole(node.agent()?, "reg.test/acme/kept:v1").await?;
    let said = node.agent()?.say(&["prefetch", "reg.test/acme/wanted:v1"]).await?;
    ensure!(said.contains(&images[1].1.root().digest), "{said}");
    whole(node.agent()?, "reg.test/acme/wanted:v1").await?;
    let failed = node.agent()?.command(&["prefetch", "reg.test/acme/nothing:v1", "reg.test/acme/wanted:v1"]).await?;
    ensure!(!failed.status.success(), "there is no such image");
    ensure!(String::from_utf8_lossy(&failed.stderr).contains("acme/nothing"));
    ensure!(String::from_utf8_lossy(&failed.stdout).contains("acme/wanted"), "the others are fetched all the same");
    registry.refuse();
    for (name, _) in &images {
        node.containerd.pull(&format!("reg.test/acme/{name}:v1")).await.with_context(|| name.to_string())?;
    }
    // Only what this machine runs was fetched of the index.
    let listed = node.agent()?.say(&["cache", "ls"]).await?;
    let until_when = |image: &str| -> Result<String> {
        let from = listed.lines().next().and_then(|headers| headers.find("UNTIL")).context("no such column")?;
        let row = listed.lines().find(|line| line.starts_with(image)).with_context(|| listed.clone())?;
        Ok(row[from..].split("  ").next().unwrap_or_default().to_owned())
    };
    ensure!(listed.contains("keep reg.test/acme/kept:v1") && until_when("reg.test/acme/kept:v1")? == "-", "{listed}");
    // Thirty days from when it was fetched; the day may have changed since.
    let until_then = until_when("reg.test/acme/wanted:v1")?;
    let in_days = |days: i64| Timestamp::now() + SignedDuration::from_hours(24 * days);
    let days = [29, 30].map(|days| in_days(days).strftime("%Y-%m-%d").to_string());
    ensure!(days.iter().any(|day| until_then.starts_with(day)), "{listed}");
    node.agent_mut()?.stop()?;
    ensure!(node.agent()?.say(&["cache", "ls"]).await?.contains("acme/wanted"), "remembered");
    let failed = node.agent()?.command(&["prefetch", "reg.test/acme/wanted:v1"]).await?;
    ensure!(!failed.status.success() && String::from_utf8_lossy(&failed.stderr).contains("no agent is running"));
    Ok(())
}

/// What nothing has used for `health.unused_ttl` isn't watched any more, and stays in the cache.
async fn what_is_long_unused_is_kept_and_not_watched(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(34, 1);
    registry.add(&image, "acme/app", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set_text("health", "unused_ttl", "12s").set_text("cache", "expire_unused", "30d");
    let node = builder.start().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    let agent = node.agent()?;
    let is_watched = async || Some(agent.metrics().await.ok()?.has("larder_image_status"));
    until("it is watched", ADOPTED, async || is_watched().await?.then_some(())).await?;
    // Looked at once a minute where nothing else happens.
    until("it isn't watched any more", TRIED_AGAIN, async || (!is_watched().await?).then_some(())).await?;
    ensure!(kept(agent, "reg.test/acme/app:v1").await.is_some_and(|image| image["whole"] == true), "it isn't kept");
    Ok(())
}

/// Dropped by containerd and used by nothing, it expires; what runs doesn't.
async fn what_is_unused_expires(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (unused, running) = (Image::one_layer(12, 2), Image::builder(13).layer(4 << 20).program()?.build());
    registry.add(&unused, "acme/unused", "v1");
    registry.add(&running, "acme/running", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set_text("cache", "expire_unused", "12s");
    let node = builder.start().await?;
    for name in ["unused", "running"] {
        node.containerd.pull(&format!("reg.test/acme/{name}:v1")).await?;
        whole(node.agent()?, &format!("reg.test/acme/{name}:v1")).await?;
    }
    node.containerd.run("reg.test/acme/running:v1", &Labels::of_container("default", "web", "app")).await?;
    remove(&node, "acme/unused", &unused).await?;
    let agent = node.agent()?;
    until("it is gone", GONE, async || (!stored(agent, unused.largest()).exists()).then_some(())).await?;
    until("it isn't known any more", GONE, async || {
        kept(agent, "reg.test/acme/unused:v1").await.is_none().then_some(())
    })
    .await?;
    ensure!(kept(agent, "reg.test/acme/running:v1").await.is_some_and(|image| image["why"] == "in use"));
    ensure!(stored(agent, running.largest()).exists());
    ensure!(agent.metrics().await?.sum("larder_images_evicted_total", &["reason=\"expired\""]) >= 1.0);
    Ok(())
}

/// An image that is ignored is pulled through the agent, and nothing of it stays there.
async fn what_is_ignored_passes_through(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (ignored, other) = (Image::many_layers(14, 2, 3000), Image::one_layer(15, 2));
    registry.add(&ignored, "huge/model", "v1");
    registry.add(&other, "acme/app", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set("cache", "ignore", r#"["reg.test/huge/*"]"#);
    let node = builder.start().await?;
    node.containerd.pull("reg.test/huge/model:v1").await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure_only_the_agent_asked(&registry)?;
    let agent = node.agent()?;
    whole(agent, "reg.test/acme/app:v1").await?;
    settled(agent).await?;
    ensure!(kept(agent, "reg.test/huge/model:v1").await.is_none(), "it is watched");
    for blob in ignored.blobs() {
        ensure!(!stored(agent, blob).exists(), "{} is in the store", blob.digest);
    }
    Ok(())
}

/// A registry that doesn't say how long a blob is: its manifest does, and it is stored by that.
#[test]
fn what_comes_without_a_length_is_kept() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let (image, long) = (Image::one_layer(21, 12), Image::one_layer(22, 12));
        for image in [&image, &long] {
            registry.add(image, "acme/app", "v1");
            registry.fault(When::get(image.largest()), Fault::Chunked);
        }
        let folder = Folder::new()?;
        let mut config = AgentConfig::without_containerd(folder.path());
        config.registry("reg.test", &[&registry.url()]);
        let agent = Agent::start(&folder.path().join("larder"), &config).await?;
        let url =
            |kind: &str, blob: &Blob| format!("{}/v2/acme/app/{kind}/{}?ns=reg.test", agent.mirror(), blob.digest);
        ensure!(agent.http().get(&url("manifests", image.root())).await?.status == 200);
        for time in ["from the registry", "from what was kept"] {
            let reply = agent.http().get(&url("blobs", image.largest())).await?;
            ensure!(reply.status == 200 && reply.body == image.largest().bytes, "{time}: {}", reply.status);
        }
        ensure!(registry.count("GET", &image.largest().digest) == 1, "it was fetched twice");
        // Without its manifest nobody knows, and it is passed through.
        let reply = agent.http().get(&url("blobs", long.largest())).await?;
        ensure!(reply.status == 200 && reply.body == long.largest().bytes, "{}", reply.status);
        Ok(())
    });
}

/// What is to be kept is fetched with nobody waiting for it: no faster than the background may be.
#[test]
fn what_nobody_waits_for_comes_at_its_rate() {
    const BYTES_PER_SECOND: usize = 2 << 20;
    // More than comes in one piece: behind the last one nothing is waited for.
    const PIECE: usize = 1 << 20;
    run(async {
        let (registry, image) = (FaultRegistry::start().await?, Image::opaque(23, 6 << 20));
        registry.add(&image, "acme/app", "v1");
        let folder = Folder::new()?;
        let mut config = AgentConfig::without_containerd(folder.path());
        config.registry("reg.test", &[&registry.url()]);
        config.set("cache", "keep", r#"["reg.test/acme/app:v1"]"#).set_text("cache", "background_rate", "2MiB");
        let agent = Agent::start(&folder.path().join("larder"), &config).await?;
        let layer = image.largest();
        until("it is there", ADOPTED, async || stored(&agent, layer).exists().then_some(())).await?;
        let done = Timestamp::now();
        let requests = registry.requests();
        let asked = requests.iter().find(|request| request.method == "GET" && request.target.contains(&layer.digest));
        let took = done.duration_since(asked.context("it was not fetched")?.at).as_secs_f64();
        let least = (layer.bytes.len() - PIECE) as f64 / BYTES_PER_SECOND as f64;
        ensure!(took >= least, "it took {took} seconds, and may not take less than {least}");
        until("it is counted", ADOPTED, async || {
            let bytes = agent.metrics().await.ok()?.sum("larder_background_bytes_total", &[]);
            (bytes >= layer.bytes.len() as f64).then_some(())
        })
        .await
    });
}

/// Has containerd remove an image, by all its names.
pub(crate) async fn remove(node: &Node, repository: &str, image: &Image) -> Result<()> {
    let names = node.containerd.ctr_of_cri(&["images", "ls", "--quiet"]).await?;
    for name in names.lines().filter(|name| name.contains(repository) || name.contains(&image.blobs()[0].digest)) {
        node.containerd.ctr_of_cri(&["images", "rm", "--sync", name]).await?;
    }
    Ok(())
}

/// Has containerd collect what nothing needs, discarded layers too: it does when an image goes.
pub(crate) async fn collect(node: &Node, registry: &FaultRegistry) -> Result<()> {
    let other = Image::tiny(99);
    registry.add(&other, "acme/other", "v1");
    node.containerd.pull("reg.test/acme/other:v1").await?;
    remove(node, "acme/other", &other).await
}

/// Waits until containerd has collected a layer that it has no image of any more.
pub(crate) async fn gone_at_containerd(node: &Node, image: &Image) -> Result<()> {
    let theirs = node.containerd.blob(&image.largest().digest);
    until("containerd has dropped the layer", GONE, async || (!theirs.exists()).then_some(())).await
}

/// What `larder cache ls` says of an image.
pub(crate) async fn kept(agent: &Agent, name: &str) -> Option<Value> {
    let said = agent.say(&["cache", "ls", "--json"]).await.ok()?;
    let images = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    images.into_iter().find(|image| image["image"] == name)
}

pub(crate) async fn whole(agent: &Agent, name: &str) -> Result<()> {
    let what = format!("{name} is whole");
    let waited = until(&what, ADOPTED, async || kept(agent, name).await?["whole"].as_bool()?.then_some(()));
    let Err(error) = waited.await else { return Ok(()) };
    Err(error.context(agent.say(&["cache", "ls"]).await?))
}

/// Waits until nothing in the store takes disk of its own but what is small.
async fn settled(agent: &Agent) -> Result<()> {
    until("what is held is containerd's too", ADOPTED, async || {
        let metrics = agent.metrics().await.ok()?;
        let (own, shared) = (metrics.sum("larder_store_bytes", &[]), metrics.sum("larder_store_shared_bytes", &[]));
        (shared > 0.0 && own <= shared / 100.0).then_some(())
    })
    .await
}

/// Waits until all of an image is given to anybody.
async fn public(agent: &Agent, image: &Image) -> Result<()> {
    let blobs = image.blobs().iter().map(|blob| format!("blobs/{}", blob.digest));
    let manifests = image.manifests().iter().map(|manifest| format!("manifests/{}", manifest.digest));
    for what in blobs.chain(manifests) {
        let url = format!("{}/v2/acme/app/{what}?ns=reg.test", agent.mirror());
        until("it is anybody's", ADOPTED, async || (agent.http().get(&url).await.ok()?.status == 200).then_some(()))
            .await?;
    }
    Ok(())
}

pub(crate) fn stored(agent: &Agent, blob: &Blob) -> std::path::PathBuf {
    agent.cache().join("blobs").join(blob.digest.replace(':', "/"))
}

fn is_linked(agent: &Agent, blob: &Blob) -> bool {
    stored(agent, blob).metadata().is_ok_and(|metadata| metadata.nlink() > 1)
}

/// Bytes of the disk that files below these folders use, each once.
fn used(folders: &[&Path]) -> Result<u64> {
    fn add(folder: &Path, seen: &mut HashSet<(u64, u64)>) -> Result<u64> {
        let mut sum = 0;
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            // What goes meanwhile uses nothing.
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                sum += add(&entry.path(), seen)?;
            } else if seen.insert((metadata.dev(), metadata.ino())) {
                sum += metadata.blocks() * 512;
            }
        }
        Ok(sum)
    }
    let mut seen = HashSet::new();
    folders.iter().map(|folder| add(folder, &mut seen)).sum()
}
