//! Where the bytes come from: transfers, stores, zones.

use std::time::Duration;

use anyhow::{Result, ensure};
use larder_integration::{Image, until};

use super::{NAME, Stage};
use crate::support::run;

/// What one zone has isn't fetched from another; what it hasn't comes once.
#[test]
fn one_copy_goes_from_zone_to_zone() {
    run(async {
        let image = Image::one_layer(1, 8);
        let stage = Stage::with(&image, None)?;
        let zones = |number: usize, config: &mut larder_integration::AgentConfig| {
            config.set_text("peers", "zone", if number < 3 { "east" } else { "west" });
        };
        let cluster = stage.nodes(6, None)?.configure(zones).start().await?;
        cluster.member(0).pull(NAME).await?;
        cluster.pull(NAME, &image).await?;
        stage.ensure_copies(&image, 1.0)?;
        // Two in the east, and three in the west, one of which got it from the east.
        let crossed = cluster.sum("larder_peer_received_bytes_total", &["zone=\"other\""]).await;
        let stayed = cluster.sum("larder_peer_received_bytes_total", &["zone=\"same\""]).await;
        let size = image.size() as f64;
        ensure!((0.95..=1.1).contains(&(crossed / size)), "{crossed} bytes of {size} crossed");
        ensure!((3.9..=4.2).contains(&(stayed / size)), "{stayed} bytes of {size} stayed");
        Ok(())
    });
}

/// It is gone from the one that had it: that costs a round trip, not the pull.
#[test]
fn what_a_holder_lost_is_found_elsewhere() {
    run(async {
        let image = Image::one_layer(2, 4);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(3, None)?.start().await?;
        cluster.member(0).pull(NAME).await?;
        // Behind the agent's back.
        std::fs::remove_dir_all(cluster.member(0).agent.cache().join("blobs"))?;
        let fetched = cluster.member(1).pull(NAME).await?;
        ensure!(fetched.took < Duration::from_secs(8), "{fetched:?}");
        Ok(())
    });
}

/// A killed agent comes back with what it had, and gives it to others.
#[test]
fn who_comes_back_is_read_from() {
    run(async {
        let image = Image::one_layer(3, 4);
        let mut stage = Stage::with(&image, None)?;
        let mut cluster = stage.nodes(3, None)?.start().await?;
        cluster.member(1).pull(NAME).await?;
        cluster.member_mut(1).agent.kill();
        cluster.member_mut(1).agent.start_again().await?;
        cluster.settle().await?;
        stage.registry.refuse();
        // It tells the owners what it has, a moment after it is a member again.
        until("it is read from", Duration::from_secs(10), async || cluster.member(2).pull(NAME).await.ok()).await?;
        Ok(())
    });
}

/// A pull is found by its id in the logs of all who gave it something, at the level that is set by default; and leases are
/// counted where they are given and where they are held.
#[test]
fn a_pull_can_be_followed_and_its_leases_counted() {
    run(async {
        let image = Image::one_layer(6, 16);
        let stage = Stage::with(&image, None)?;
        let as_by_default = |_: usize, config: &mut larder_integration::AgentConfig| {
            config.set_text("log", "level", "info");
        };
        let cluster = stage.nodes(3, None)?.configure(as_by_default).start().await?;
        cluster.member(0).pull(NAME).await?;
        let leases = async |event: &str| cluster.sum("larder_peer_leases_total", &[&format!("event={event:?}")]).await;
        let (granted, held, renewed) = (leases("granted").await, leases("held").await, leases("renewed").await);
        ensure!(granted >= 1.0 && granted == held, "{granted} granted, {held} held");
        // 4 MiB at first, and nobody else wants it.
        ensure!(renewed >= 1.0, "no lease went on for another range");

        cluster.member(1).pull(NAME).await?;
        let pull = until("the pull is a line in its node's log", Duration::from_secs(20), async || {
            let log = cluster.member(1).agent.log();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let mut pulls = lines.filter(|line| line["message"] == "pulled");
            pulls.find_map(|line| line["pull"].as_str().map(str::to_owned))
        })
        .await?;
        let log = cluster.member(0).agent.log();
        let gave = log.lines().filter(|line| line.contains(&pull) && line.contains(&image.largest().digest)).count();
        ensure!(gave > 0, "{gave} lines say that it was given to pull {pull}:\n{log}");
        Ok(())
    });
}

/// Nothing is said when there is nothing to say.
#[test]
fn whole_clusters_are_quiet() {
    run(async {
        let image = Image::one_layer(4, 4);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(4, None)?.start().await?;
        cluster.pull(NAME, &image).await?;
        let traffic = || -> Result<u64> {
            cluster.members().iter().try_fold(0, |sum, member| Ok(sum + member.host.traffic()?.0))
        };
        // Reports and announcements of the pull end first.
        let mut before = traffic()?;
        until("the cluster is quiet", Duration::from_secs(20), async || {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let sent = traffic().ok()? - before;
            before += sent;
            // Heartbeats: of each node less than 4 KB a second.
            (sent < 2 * 4 * 4000).then_some(())
        })
        .await
    });
}

/// Who asks for bytes of the middle gets them, whoever has them.
#[test]
fn ranges_come_from_peers_too() {
    run(async {
        let image = Image::one_layer(5, 6);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(3, None)?.start().await?;
        cluster.member(0).pull(NAME).await?;
        stage.registry.clear_log();
        let layer = image.largest();
        let puller = cluster.member(1).puller("reg.test");
        let what = format!("blobs/{}", layer.digest);
        let reply = puller.get_range("acme/app", &what, "bytes=5000000-5999999").await?;
        ensure!(reply.status == 206 && reply.body == layer.bytes.slice(5_000_000..6_000_000), "{:?}", reply.status);
        ensure!(stage.registry.sent("/blobs/") <= 4 << 20, "{}", stage.registry.shown(""));
        Ok(())
    });
}
