//! Nobody has it, and all want it.

use std::time::Duration;

use anyhow::ensure;
use larder_integration::{Image, Release};

use super::{LINK, NAME, Stage, ensure_nothing_wrong_is_kept, ensure_timely, mixed};
use crate::support::run;

/// One copy leaves upstream, and the last node is done about when one by itself would be.
#[test]
fn one_copy_for_all_who_pull_at_once() {
    run(async {
        let image = mixed(1);
        let stage = Stage::with(&image, Some(LINK))?;
        let cluster = stage.nodes(5, Some(LINK))?.start().await?;
        let fetched = cluster.pull(NAME, &image).await?;
        stage.ensure_copies(&image, 1.02)?;
        let manifest = format!("/manifests/{}", image.root().digest);
        ensure!(stage.registry.count("GET", &manifest) == 1, "{}", stage.registry.shown(""));
        ensure!(stage.registry.count("GET", "/manifests/") == 1);
        // Five downloads past each other would take five times as long.
        ensure_timely(&fetched, LINK, 2.0, Duration::from_secs(1))?;
        ensure_nothing_wrong_is_kept(&cluster).await
    });
}

/// Manifests of platforms, configs and layers of a kilobyte.
#[test]
fn small_content_leaves_upstream_once() {
    run(async {
        let (index, small) = (Image::index(2, 1), Image::many_layers(3, 30, 1));
        let stage = Stage::new(None)?;
        stage.registry.add(&index, "acme/index", "v1");
        stage.registry.add(&small, "acme/small", "v1");
        let cluster = stage.nodes(5, None)?.start().await?;
        cluster.pull("reg.test/acme/small:v1", &small).await?;
        for blob in small.blobs().iter().chain(small.manifests()) {
            let gets = stage.registry.count("GET", &blob.digest);
            ensure!(gets == 1, "{gets} GETs of {} ({} bytes)", blob.digest, blob.bytes.len());
        }
        cluster.pull("reg.test/acme/index:v1", &index).await?;
        for manifest in [index.root(), &index.manifests()[0]] {
            ensure!(stage.registry.count("GET", &manifest.digest) == 1, "{}", stage.registry.shown(""));
        }
        Ok(())
    });
}

/// Who comes in the middle reads what is there, and what comes.
#[test]
fn who_comes_later_joins() {
    run(async {
        let image = Image::one_layer(4, 12);
        let stage = Stage::with(&image, Some(LINK))?;
        let cluster = stage.nodes(4, Some(LINK))?.start().await?;
        let late = async |number: usize, copies: f64| {
            stage.has_sent(&image, copies).await?;
            cluster.member(number).pull(NAME).await
        };
        let (one, two, three, four) = tokio::try_join!(late(0, 0.0), late(1, 0.2), late(2, 0.5), late(3, 0.9))?;
        stage.ensure_copies(&image, 1.02)?;
        ensure_timely(&[one, two, three, four], LINK, 2.5, Duration::from_secs(1))
    });
}

/// Upstream gives no bytes where one has it.
#[test]
fn rolling() {
    run(async {
        let image = mixed(5);
        let stage = Stage::with(&image, Some(LINK))?;
        let cluster = stage.nodes(4, Some(LINK))?.start().await?;
        cluster.member(0).pull(NAME).await?;
        stage.registry.clear_log();
        for number in 1..4 {
            let fetched = cluster.member(number).pull(NAME).await?;
            ensure_timely(&[fetched], LINK, 1.5, Duration::from_secs(1))?;
        }
        ensure!(stage.registry.sent("/blobs/") == 0, "{}", stage.registry.shown(""));
        ensure!(stage.registry.count("GET", "/manifests/") == 0);
        Ok(())
    });
}

/// With what kubelet uses at the end of it: containerd, on three nodes.
#[test]
fn through_containerd() {
    run(async {
        let image = Image::many_layers(6, 5, 1500);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(3, None)?.with_containerd(Release::Sid).start().await?;
        let pulls = cluster.members().iter().map(|member| async {
            let Some(containerd) = &member.containerd else { anyhow::bail!("no containerd") };
            let id = containerd.pull(NAME).await?;
            ensure!(id == image.blobs()[0].digest);
            Ok(())
        });
        futures_util::future::try_join_all(pulls).await?;
        stage.ensure_copies(&image, 1.02)
    });
}
