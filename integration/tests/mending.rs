//! What is missing of an image, or wrong, is fetched with nobody asking for it.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use larder_integration::{Fault, FaultRegistry, Image, Labels, RemoteSnapshotter, When, until};

use crate::disk::flip;
use crate::keep::{ADOPTED, GONE, TRIED_AGAIN, collect, gone_at_containerd, kept, remove, stored, whole};
use crate::support::{Case, ensure_only_the_agent_asked, on_every_containerd};

on_every_containerd!(over tls:
    what_layers_were_discarded_of_is_unprotected_until_it_is_mended,
    what_is_mounted_from_afar_is_fetched,
    what_runs_is_mended,
);
on_every_containerd!(over tls by one: rot_is_found_with_nobody_reading);

/// Installed where layers are discarded once they are unpacked, and the registry is away: what containerd has can't be
/// pulled again, and that is said. It is fetched once the registry is back, also what isn't running.
async fn what_layers_were_discarded_of_is_unprotected_until_it_is_mended(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let images = [("runs", Image::runnable(30)?), ("rests", Image::many_layers(31, 2, 700))];
    let mut builder = case.builder()?.without_agent().registry("reg.test", &registry.url())?;
    builder.containerd.discards_layers = true;
    for (name, image) in &images {
        registry.add(image, &format!("acme/{name}"), "v1");
    }
    let mut node = builder.start().await?;
    for (name, _) in &images {
        node.containerd.pull(&format!("reg.test/acme/{name}:v1")).await?;
    }
    node.containerd.run("reg.test/acme/runs:v1", &Labels::of_container("default", "web", "app")).await?;
    collect(&node, &registry).await?;
    for (_, image) in &images {
        gone_at_containerd(&node, image).await?;
    }
    registry.refuse();
    registry.clear_log();
    node.install_agent().await?;
    let agent = node.agent()?;
    let are_protected = async |value: f64| -> Option<()> {
        let metrics = agent.metrics().await.ok()?;
        let is_so = |(name, _): &(&str, Image)| {
            let image = format!("image=\"reg.test/acme/{name}:v1\"");
            metrics.sum("larder_image_status", &[&image]) == 1.0
                && metrics.sum("larder_image_protected", &[&image]) == value
        };
        images.iter().all(is_so).then_some(())
    };
    until("both are said to be unprotected", ADOPTED, async || are_protected(0.0).await).await?;
    for (name, _) in &images {
        let name = format!("reg.test/acme/{name}:v1");
        ensure!(kept(agent, &name).await.is_some_and(|image| image["whole"] == false), "{name} is whole");
    }
    registry.accept()?;
    until("both are mended, and protected", TRIED_AGAIN, async || are_protected(1.0).await).await?;
    for (name, image) in &images {
        ensure!(registry.count("GET", &image.largest().digest) == 1, "{name}: {}", registry.shown("/blobs/"));
    }
    registry.refuse();
    remove(&node, "acme/rests", &images[1].1).await?;
    node.containerd.pull("reg.test/acme/rests:v1").await.context("without the registry")?;
    Ok(())
}

/// A remote snapshotter mounts the layers, and containerd asks nobody for them: until they were fetched with nobody
/// waiting for them, the image is unprotected. Then it comes from here, and what the snapshotter reads of it too.
async fn what_is_mounted_from_afar_is_fetched(case: Case) -> Result<()> {
    const APP: &str = "reg.test/acme/app:v1";
    let mut registry = FaultRegistry::start().await?;
    let image = Image::many_layers(35, 2, 700);
    let layers = &image.blobs()[1..];
    registry.add(&image, "acme/app", "v1");
    for layer in layers {
        registry.fault(When::get(layer), Fault::status(503));
    }
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    let snapshotter = RemoteSnapshotter::start(&builder.folder().join("snapshotter.sock"))?;
    builder.containerd.snapshotter = Some(snapshotter.socket().to_owned());
    let node = builder.start().await?;
    let agent = node.agent()?;
    let is_protected = async || -> Option<f64> {
        let metrics = agent.metrics().await.ok()?;
        let image = format!("image={APP:?}");
        let is_watched = metrics.sum("larder_image_status", &[&image]) == 1.0;
        is_watched.then(|| metrics.sum("larder_image_protected", &[&image]))
    };
    node.containerd.pull(APP).await.context("whose layers nobody gives")?;
    ensure!(snapshotter.mounted() >= layers.len(), "{snapshotter:?}");
    until("it is said to be unprotected", ADOPTED, async || (is_protected().await? == 0.0).then_some(())).await?;
    ensure!(kept(agent, APP).await.is_some_and(|image| image["whole"] == false), "it is whole");

    registry.heal();
    until("it is fetched, and protected", TRIED_AGAIN, async || (is_protected().await? == 1.0).then_some(())).await?;
    whole(agent, APP).await?;
    ensure_only_the_agent_asked(&registry)?;
    ensure!(registry.copies(&image) == 1.0, "{}", registry.shown("/blobs/"));
    let content = node.containerd.content().await?;
    ensure!(!layers.iter().any(|layer| content.contains(&layer.digest)), "containerd has a layer");
    // Dropping them would free them, and nobody else has them.
    let bytes: usize = layers.iter().map(|layer| layer.bytes.len()).sum();
    until("they count as the store's own", ADOPTED, async || {
        let own = agent.metrics().await.ok()?.sum("larder_store_bytes", &[]);
        (own >= bytes as f64).then_some(())
    })
    .await?;

    registry.refuse();
    remove(&node, "acme/app", &image).await?;
    let manifest = node.containerd.blob(&image.root().digest);
    until("containerd has dropped it", GONE, async || (!manifest.exists()).then_some(())).await?;
    node.containerd.pull(APP).await.context("without the registry")?;
    let url = format!("{}/v2/acme/app/blobs/{}?ns=reg.test", agent.mirror(), layers[1].digest);
    let read = agent.http().get_range(&url, "bytes=100000-100999").await?;
    ensure!(read.status == 206 && read.body == layers[1].bytes[100_000..101_000], "{}", read.status);
    Ok(())
}

/// A blob of a running image is lost here and at containerd: it is fetched again, with nobody asking for it.
async fn what_runs_is_mended(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::builder(11).layer(4 << 20).program()?.build();
    registry.add(&image, "acme/app", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.containerd.discards_layers = true;
    let mut node = builder.start().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.run("reg.test/acme/app:v1", &Labels::of_container("default", "web", "app")).await?;
    whole(node.agent()?, "reg.test/acme/app:v1").await?;
    collect(&node, &registry).await?;
    gone_at_containerd(&node, &image).await?;
    node.agent_mut()?.stop()?;
    std::fs::remove_file(stored(node.agent()?, image.largest()))?;
    registry.clear_log();
    node.agent_mut()?.start_again().await?;
    let layer = format!("/blobs/{}", image.largest().digest);
    until("it is fetched again", ADOPTED, async || (registry.count("GET", &layer) > 0).then_some(())).await?;
    whole(node.agent()?, "reg.test/acme/app:v1").await?;
    ensure!(node.agent()?.metrics().await?.sum("larder_background_bytes_total", &[]) > 1e6);
    Ok(())
}

/// A byte of a running image has flipped on the disk, and nobody reads it: it is found, and made good.
async fn rot_is_found_with_nobody_reading(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::builder(33).layer(8 << 20).program()?.build();
    registry.add(&image, "acme/app", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.containerd.discards_layers = true;
    builder.agent.set_text("cache", "scrub_rate", "1GB");
    let mut node = builder.start().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.run("reg.test/acme/app:v1", &Labels::of_container("default", "web", "app")).await?;
    whole(node.agent()?, "reg.test/acme/app:v1").await?;
    collect(&node, &registry).await?;
    let (layer, path) = (image.largest(), stored(node.agent()?, image.largest()));
    until("it is the store's alone", GONE, async || {
        let is_own = path.metadata().ok()?.nlink() == 1;
        (is_own && !node.containerd.blob(&layer.digest).exists()).then_some(())
    })
    .await?;
    node.agent_mut()?.stop()?;
    flip(&path, layer.bytes.len() / 2)?;
    registry.clear_log();
    node.agent_mut()?.start_again().await?;
    let agent = node.agent()?;
    until("the rot is found", ADOPTED, async || {
        (agent.metrics().await.ok()?.sum("larder_store_rotten_total", &[]) == 1.0).then_some(())
    })
    .await?;
    let is_right = async || (std::fs::read(&path).ok()? == layer.bytes).then_some(());
    until("it is made good", ADOPTED, is_right).await?;
    ensure!(registry.count("GET", &layer.digest) == 1, "{}", registry.shown("/blobs/"));
    whole(agent, "reg.test/acme/app:v1").await
}
