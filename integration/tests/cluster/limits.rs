//! No more than is allowed goes from node to node.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use larder_integration::Image;

use super::{NAME, Stage};
use crate::support::run;

const LIMIT: u64 = 2 << 20;

/// The holder gives no more in a second than it is told to, and those who read get all of it.
#[test]
fn uploads_are_limited() {
    run(async {
        let image = Image::one_layer(1, 8);
        let stage = Stage::with(&image, None)?;
        let slow = |_: usize, config: &mut larder_integration::AgentConfig| {
            config.set_text("peers", "max_upload", "2MiB");
        };
        let cluster = stage.nodes(3, None)?.configure(slow).start().await?;
        cluster.member(0).pull(NAME).await?;
        stage.registry.clear_log();
        let (before, begun) = (cluster.member(0).host.traffic()?.0, Instant::now());
        let fetched = cluster.pull_on(&[1, 2], NAME).await.into_iter().collect::<Result<Vec<_>>>()?;
        let (sent, took) = (cluster.member(0).host.traffic()?.0 - before, begun.elapsed());
        let allowed = (took.as_secs_f64() + 1.0) * LIMIT as f64 * 1.1;
        ensure!((sent as f64) < allowed, "{sent} bytes in {took:?}, and {allowed:.0} were allowed");
        ensure!(fetched.iter().all(|fetched| fetched.took > Duration::from_secs(2)), "{fetched:?}");
        ensure!(stage.registry.sent("/blobs/") == 0, "upstream was asked: {}", stage.registry.shown("/blobs/"));
        Ok(())
    });
}

/// Ten layers at once, each of which has its turn every 1.25 s: who holds itself back doesn't take its only holder for dead,
/// nor the registry for a better one, and complains of nobody.
#[test]
fn downloads_are_limited_and_upstream_is_not_asked_for_what_a_node_has() {
    run(async {
        let image = Image::builder(2);
        let image = (0..10).fold(image, |image, _| image.layer(1 << 20)).build();
        let stage = Stage::with(&image, None)?;
        let slow = |number: usize, config: &mut larder_integration::AgentConfig| {
            if number == 1 {
                config.set_text("peers", "max_download", "2MiB");
            }
        };
        let cluster = stage.nodes(3, None)?.configure(slow).start().await?;
        cluster.member(0).pull(NAME).await?;
        stage.registry.clear_log();
        let (reader, begun) = (cluster.member(1).puller("reg.test"), Instant::now());
        let layers = image.blobs().iter().filter(|blob| blob.bytes.len() >= 1 << 20);
        let fetched = try_join_all(layers.map(async |layer| {
            let reply = reader.get("acme/app", &format!("blobs/{}", layer.digest)).await?;
            ensure!(reply.status == 200 && reply.body == layer.bytes, "{:?}", reply.status);
            anyhow::Ok(())
        }));
        ensure!(fetched.await?.len() == 10);
        ensure!(begun.elapsed() > Duration::from_secs(3), "it isn't limited: {:?}", begun.elapsed());
        ensure!(stage.registry.sent("/blobs/") == 0, "upstream was asked: {}", stage.registry.shown("/blobs/"));
        let metrics = cluster.member(1).agent.metrics().await?;
        let moved = metrics.sum("larder_peer_moves_total", &[]);
        ensure!(moved == 0.0, "{moved} times the holder was left");
        Ok(())
    });
}
