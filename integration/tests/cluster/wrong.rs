//! Wrong bytes: from the first of two upstreams, and from a peer's disk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use larder_integration::{Cluster, Fault, FaultRegistry, Image, Rate, Release, When, until};

use super::{LINK, NAME, Stage, ensure_nothing_wrong_is_kept};
use crate::support::run;

/// Every node has the image after at most one retry, and nothing wrong is kept anywhere.
#[test]
fn the_first_upstream_sends_wrong_bytes() {
    run(wrong_from_the_first_upstream(None));
}

/// So it is where the links are full, so that parents say too late what became of the whole, and a second copy by each
/// node would take too long to be waited for.
#[test]
fn it_does_so_over_narrow_links() {
    run(wrong_from_the_first_upstream(Some(LINK)));
}

async fn wrong_from_the_first_upstream(rate: Option<Rate>) -> Result<()> {
    let image = Image::one_layer(1, 16);
    let stage = Stage::with(&image, rate)?;
    let right = FaultRegistry::start_on(&stage.network.host(rate)?)?;
    right.add(&image, "acme/app", "v1");
    stage.registry.fault(When::get(image.largest()), Fault::WrongByte(5_000_000));
    let builder = Cluster::builder(&stage.network, 6, rate)?;
    let cluster = builder.registry("reg.test", &[&stage.registry.url(), &right.url()]).start().await?;
    let all: Vec<usize> = (0..6).collect();
    let first = cluster.pull_on(&all, NAME).await;
    let failed: Vec<usize> = all.into_iter().filter(|&number| first[number].is_err()).collect();
    ensure!(stage.registry.met() > 0);
    stage.registry.clear_log();
    for again in cluster.pull_on(&failed, NAME).await {
        again.with_context(|| format!("again, the first time having been {first:?}"))?;
    }
    let wrong = stage.registry.shown(&image.largest().digest);
    ensure!(stage.registry.sent(&image.largest().digest) == 0, "who lied was asked for the layer again:{wrong}");
    ensure_nothing_wrong_is_kept(&cluster).await
}

/// Some nodes have found that an upstream lies: others, which pull another image from it, don't have to find out again.
#[test]
fn who_lied_to_some_is_verified_by_all() {
    run(async {
        let (one, other) = (Image::one_layer(5, 8), Image::one_layer(6, 8));
        let stage = Stage::with(&one, None)?;
        let right = FaultRegistry::start_on(&stage.network.host(None)?)?;
        right.add(&one, "acme/app", "v1");
        for registry in [&stage.registry, &right] {
            registry.add(&other, "acme/other", "v1");
        }
        for image in [&one, &other] {
            stage.registry.fault(When::get(image.largest()), Fault::WrongByte(6_000_000));
        }
        let builder = Cluster::builder(&stage.network, 6, None)?;
        let cluster = builder.registry("reg.test", &[&stage.registry.url(), &right.url()]).start().await?;
        let first = cluster.pull_on(&[0, 1, 2], NAME).await;
        ensure!(first.iter().any(Result::is_err), "nobody was given wrong bytes: {first:?}");
        let met = stage.registry.met();
        for pulled in cluster.pull_on(&[3, 4, 5], "reg.test/acme/other:v1").await {
            pulled.context("at the first attempt")?;
        }
        ensure!(stage.registry.met() > met, "it wasn't asked for the second image");
        ensure_nothing_wrong_is_kept(&cluster).await
    });
}

/// containerd itself asks, in a namespace that isn't CRI's: what it has of the wrong bytes is in none of the namespaces that
/// agents look after, and would be continued for as long as containerd doesn't collect its garbage.
#[test]
fn every_containerd_has_it_at_its_second_attempt() {
    run(async {
        let image = Image::one_layer(3, 8);
        let stage = Stage::with(&image, None)?;
        let right = FaultRegistry::start_on(&stage.network.host(None)?)?;
        right.add(&image, "acme/app", "v1");
        stage.registry.fault(When::get(image.largest()), Fault::WrongByte(3_000_000));
        let builder = Cluster::builder(&stage.network, 8, None)?.with_containerd(Release::Trixie);
        let cluster = builder.registry("reg.test", &[&stage.registry.url(), &right.url()]).start().await?;
        let twice = cluster.members().iter().map(async |member| {
            let Err(first) = member.fetch(NAME)?.await else { return Ok(false) };
            // At once: an instant later containerd may have collected.
            member.fetch(NAME)?.await.with_context(|| format!("again, after {first:#}"))?;
            Ok(true)
        });
        let failed: Vec<bool> = join_all(twice).await.into_iter().collect::<Result<_>>()?;
        ensure!(failed.contains(&true), "nobody was given wrong bytes");
        ensure_nothing_wrong_is_kept(&cluster).await
    });
}

/// A holder's disk rots: it isn't believed, and others have it.
#[test]
fn a_peers_disk_rots() {
    run(async {
        let image = Image::one_layer(2, 4);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(3, None)?.start().await?;
        cluster.member(0).pull(NAME).await?;
        let hex = image.largest().digest.trim_start_matches("sha256:");
        let file = cluster.member(0).agent.cache().join("blobs/sha256").join(hex);
        flip(&file, 2_000_000)?;
        let pulled = cluster.member(1).pull(NAME).await;
        if pulled.is_err() {
            cluster.member(1).pull(NAME).await.with_context(|| format!("again, after {pulled:?}"))?;
        }
        cluster.member(1).agent.say(&["cache", "verify"]).await?;
        until("it pulls again", Duration::from_secs(10), async || cluster.member(2).pull(NAME).await.ok()).await?;
        Ok(())
    });
}

fn flip(file: &std::path::Path, at: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let mut permissions = std::fs::metadata(file)?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(file, permissions)?;
    let file = std::fs::File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[!byte[0]], at)?;
    Ok(())
}
