//! Nodes die, crawl and are cut off in the middle; upstream goes. Nobody fails who can reach the bytes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{Cluster, Fetched, Image, Rate, until};

use super::{LINK, NAME, Stage, ensure_nothing_wrong_is_kept, ensure_timely, within};
use crate::support::run;

/// Twice the time after which a source that falls silent is left.
const STALLS: Duration = Duration::from_secs(4);

/// All pull, something happens when so much has left upstream, and these get all of it.
async fn pull_while(
    stage: &Stage,
    cluster: &mut Cluster,
    image: &Image,
    copies: f64,
    happens: impl FnOnce(&mut Cluster, usize) -> Result<Vec<usize>>,
) -> Result<Vec<Fetched>> {
    let mut running = tokio::task::JoinSet::new();
    for (number, member) in cluster.members().iter().enumerate() {
        let puller = member.puller("reg.test");
        running.spawn(async move { (number, puller.fetch("acme/app", "v1").await) });
    }
    stage.has_sent(image, copies).await?;
    let holder = stage.fetching(cluster, image).context("nobody fetches")?;
    let healthy = happens(cluster, holder)?;
    let mut fetched = Vec::new();
    while fetched.len() < healthy.len() {
        let (number, pull) = running.join_next().await.context("too few")??;
        if healthy.contains(&number) {
            fetched.push(pull.with_context(|| format!("node {number}, {holder} having fetched"))?);
        }
    }
    Ok(fetched)
}

#[test]
fn who_fetches_is_killed() {
    run(async {
        let image = Image::one_layer(1, 12);
        let stage = Stage::with(&image, Some(LINK))?;
        let mut cluster = stage.nodes(5, Some(LINK))?.start().await?;
        let fetched = pull_while(&stage, &mut cluster, &image, 0.4, |cluster, holder| {
            cluster.member_mut(holder).agent.kill();
            Ok((0..5).filter(|&number| number != holder).collect())
        })
        .await?;
        stage.ensure_copies(&image, 1.15)?;
        ensure_timely(&fetched, LINK, 2.0, STALLS)
    });
}

/// It is alive for the kernel, and for nobody else.
#[test]
fn who_fetches_freezes() {
    run(async {
        let image = Image::one_layer(2, 12);
        let stage = Stage::with(&image, Some(LINK))?;
        let mut cluster = stage.nodes(4, Some(LINK))?.start().await?;
        let fetched = pull_while(&stage, &mut cluster, &image, 0.4, |cluster, holder| {
            cluster.member(holder).agent.freeze()?;
            Ok((0..4).filter(|&number| number != holder).collect())
        })
        .await?;
        stage.ensure_copies(&image, 1.25)?;
        ensure_timely(&fetched, LINK, 2.0, STALLS)
    });
}

#[test]
fn two_are_killed_and_one_is_cut_off() {
    run(async {
        let image = Image::one_layer(3, 12);
        let stage = Stage::with(&image, Some(LINK))?;
        let mut cluster = stage.nodes(6, Some(LINK))?.start().await?;
        let fetched = pull_while(&stage, &mut cluster, &image, 0.3, |cluster, holder| {
            // Three of those that don't fetch, wherever they stand in the chain.
            let (gone, healthy): (Vec<usize>, Vec<usize>) =
                (0..6).filter(|&number| number != holder).partition(|number| (number + 6 - holder) % 6 % 2 == 1);
            cluster.member_mut(gone[0]).agent.kill();
            cluster.member_mut(gone[1]).agent.kill();
            cluster.member(gone[2]).cut()?;
            Ok([healthy, vec![holder]].concat())
        })
        .await?;
        stage.ensure_copies(&image, 1.1)?;
        ensure_timely(&fetched, LINK, 2.0, STALLS)
    });
}

/// A slow node, that fetches at first, or stands in the middle, holds up nobody but itself.
#[test]
fn a_slow_node_holds_up_itself_alone() {
    run(async {
        let image = Image::one_layer(4, 12);
        let stage = Stage::with(&image, Some(LINK))?;
        let cluster = stage.nodes(5, Some(LINK))?.start().await?;
        cluster.member(0).set_rate(Some(Rate::mbit(8)))?;
        let pull = async |number: usize, copies: f64| {
            stage.has_sent(&image, copies).await?;
            cluster.member(number).pull(NAME).await
        };
        // It comes first.
        let first = tokio::try_join!(pull(0, 0.0), pull(1, 0.02), pull(2, 0.02), pull(3, 0.02), pull(4, 0.02));
        let (slow, one, two, three, four) = first?;
        ensure!(slow.took > Duration::from_secs_f64(Rate::mbit(8).seconds(slow.bytes)), "it isn't slow: {slow:?}");
        ensure_timely(&[one, two, three, four], LINK, 2.0, STALLS)?;
        stage.ensure_copies(&image, 1.15)?;

        // It comes second, and others read from it.
        let image = Image::one_layer(5, 12);
        stage.registry.add(&image, "acme/app", "v1");
        let pull = async |number: usize, copies: f64| {
            stage.has_sent(&image, copies).await?;
            cluster.member(number).pull(NAME).await
        };
        let second = tokio::try_join!(pull(1, 0.0), pull(0, 0.02), pull(2, 0.1), pull(3, 0.1), pull(4, 0.1));
        let (one, _, two, three, four) = second?;
        ensure_timely(&[one, two, three, four], LINK, 2.0, STALLS)?;
        stage.ensure_copies(&image, 1.15)
    });
}

/// All that is needed is in the cluster, though no node has it all.
#[test]
fn upstream_goes_when_one_copy_has_left_it() {
    run(async {
        let image = Image::one_layer(6, 12);
        let mut stage = Stage::with(&image, Some(LINK))?;
        let mut cluster = stage.nodes(5, Some(LINK))?.start().await?;
        let all: Vec<usize> = (0..5).collect();
        let fetched = pull_while(&stage, &mut cluster, &image, 1.0, |_, _| Ok(all.clone()));
        // What has left it may still be on its way to who asked for it.
        let fetched = fetched.await?;
        ensure_timely(&fetched, LINK, 2.0, STALLS)?;
        stage.registry.refuse();
        // Late comers get all of it, and the tag's meaning, once they were told what falls to them as owners.
        let late = cluster.join(stage.network.host(Some(LINK))?).await?;
        cluster.settle().await?;
        until("it pulls", Duration::from_secs(10), async || cluster.member(late).pull(NAME).await.ok()).await?;
        ensure_nothing_wrong_is_kept(&cluster).await
    });
}

/// Who comes after an owner knows nothing, until those that have something tell it. There is no upstream to ask.
#[test]
fn an_owner_dies_and_the_next_one_is_told_what_there_is() {
    run(async {
        // Enough blobs that each node owns some.
        let image = Image::many_layers(10, 16, 128);
        let mut stage = Stage::with(&image, None)?;
        let mut cluster = stage.nodes(4, None)?.start().await?;
        cluster.member(0).pull(NAME).await?;
        stage.registry.refuse();
        cluster.member_mut(1).agent.kill();
        cluster.settle().await?;
        until("it pulls", Duration::from_secs(10), async || cluster.member(2).pull(NAME).await.ok()).await?;
        within(Duration::from_secs(5), cluster.member(3).pull(NAME)).await?;
        Ok(())
    });
}

/// The cluster is of no use, and costs no more than a moment.
#[test]
fn the_others_are_frozen() {
    run(async {
        let image = Image::one_layer(7, 3);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(4, None)?.start().await?;
        for number in 1..4 {
            cluster.member(number).agent.freeze()?;
        }
        within(Duration::from_secs(6), cluster.member(0).pull(NAME)).await?;
        Ok(())
    });
}

/// Two halves that don't see each other: all have it at once, and one copy goes to each half when that is known.
#[test]
fn the_cluster_is_parted() {
    run(async {
        let (first, second) = (Image::one_layer(8, 6), Image::one_layer(18, 6));
        let stage = Stage::with(&first, None)?;
        let mut cluster = stage.nodes(4, None)?.start().await?;
        for (one, other) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
            cluster.member(one).host.shun(&cluster.member(other).host)?;
            cluster.member(other).host.shun(&cluster.member(one).host)?;
        }
        within(Duration::from_secs(10), cluster.pull(NAME, &first)).await?;
        cluster.settle_among(&[0, 1, 2, 3], 2).await?;
        stage.registry.add(&second, "acme/app", "v1");
        within(Duration::from_secs(5), cluster.pull(NAME, &second)).await?;
        stage.ensure_copies(&second, 2.04)
    });
}

/// Addresses where nobody is: refused, and silent.
#[test]
fn no_seed_can_be_reached() {
    run(async {
        let image = Image::one_layer(9, 3);
        let stage = Stage::with(&image, None)?;
        let refusing = stage.network.host(None)?;
        let seeds = [format!("{}:7441", refusing.address()), "10.77.99.99:7441".to_owned()];
        let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
        let cluster = stage.nodes(1, None)?.seeds(&seeds).launch().await?;
        let fetched = cluster.member(0).pull(NAME).await?;
        ensure!(fetched.took < Duration::from_millis(1500), "{fetched:?}");
        stage.ensure_copies(&image, 1.0)
    });
}
