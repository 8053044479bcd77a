//! One node checks an image for all, and one budget holds for all nodes.

use std::time::Duration;

use anyhow::ensure;
use larder_integration::{AgentConfig, Cluster, Image, until};

use super::Stage;
use crate::health::{ensure_within, watch};
use crate::support::run;

const IMAGES: u64 = 4;
const MOST: usize = 2;
const INTERVAL: Duration = Duration::from_secs(12);
/// What one found is told a second later at most, and by an owner that takes two more; who has got leave meanwhile checks too.
const NEWS: Duration = Duration::from_secs(3);

/// Each image's turn comes every other interval, and a checker that is late is taken for gone after one more.
const FOUND: Duration = Duration::from_secs(60);

/// How many of the nodes show this of all images.
async fn showing(cluster: &Cluster, name: &str, labels: &[&str], sum: f64) -> usize {
    let mut count = 0;
    for member in cluster.members() {
        let metrics = member.agent.metrics().await;
        count += usize::from(metrics.is_ok_and(|metrics| metrics.sum(name, labels) == sum));
    }
    count
}

#[test]
fn one_checks_for_all_within_one_budget() {
    run(async {
        let stage = Stage::new(None)?;
        for n in 1..=IMAGES {
            stage.registry.add(&Image::tiny(n), "acme/app", &format!("v{n}"));
        }
        let configure = |_: usize, config: &mut AgentConfig| {
            let names: Vec<String> = (1..=IMAGES).map(|n| format!("\"reg.test/acme/app:v{n}\"")).collect();
            config.set("cache", "keep", format!("[{}]", names.join(", ")));
            // By GET, which nobody else asks for a tag with.
            config.set("health", "method", "\"GET\"").set("health", "max_per_interval", MOST.to_string());
            config.set_text("health", "interval", "12s").set_text("health", "timeout", "1s");
        };
        let mut cluster = stage.nodes(3, None)?.configure(configure).start().await?;
        let mut seen = Vec::new();
        let all = until("all know of all copies", Duration::from_secs(32), async || {
            let copies = IMAGES as f64 * 3.0;
            (showing(&cluster, "larder_image_copies", &[], copies).await == 3).then_some(())
        });
        let (all, ()) = tokio::join!(all, watch(&stage.registry, "GET", &mut seen, Duration::from_secs(32)));
        all?;
        ensure!(!seen.is_empty(), "nothing was checked: a new owner waits for no more than a window");
        // What one found, all show.
        stage.registry.remove_tag("acme/app", "v1");
        let found = until("all know that it is gone", FOUND, async || {
            let labels = ["image=\"reg.test/acme/app:v1\"", "status=\"NotFound\""];
            (showing(&cluster, "larder_image_status", &labels, 1.0).await == 3).then_some(())
        });
        tokio::select! {
            found = found => found?,
            () = watch(&stage.registry, "GET", &mut seen, FOUND * 2) => anyhow::bail!("nobody ended the look"),
        }
        let before = seen.len();
        // What one has checked is news to all: no other checks it before it is due. Who checks may change, as soon as one
        // hasn't got round to it for a while.
        for n in 1..=IMAGES {
            let path = format!("/manifests/v{n}");
            let mut checks = stage.registry.requests();
            checks.retain(|request| request.method == "GET" && request.path().ends_with(&path));
            for pair in checks.windows(2) {
                let between = pair[1].at.duration_since(pair[0].at);
                let may_be = between >= INTERVAL.try_into()? || between < NEWS.try_into()?;
                ensure!(may_be || pair[0].from == pair[1].from, "{between:#} later:{}", stage.registry.shown(&path));
            }
        }
        // Whoever owns the budget, and whoever checks, is killed in its turn and comes back.
        for number in 0..3 {
            cluster.member_mut(number).agent.kill();
            watch(&stage.registry, "GET", &mut seen, Duration::from_secs(3)).await;
            cluster.member_mut(number).agent.start_again().await?;
            watch(&stage.registry, "GET", &mut seen, Duration::from_secs(7)).await;
        }
        ensure_within(&seen, MOST, INTERVAL)?;
        ensure!(before >= 4, "only {before} checks were made while all was well");
        Ok(())
    });
}
