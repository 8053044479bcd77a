//! No more than is allowed goes from node to node.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
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
