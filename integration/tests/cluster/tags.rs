//! What tags mean, for all at once, and when no upstream says.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use http::StatusCode;
use larder_integration::{Cluster, Fault, Image, When};

use super::{NAME, Stage, within};
use crate::support::run;

async fn heads(cluster: &Cluster) -> Result<Vec<String>> {
    try_join_all(cluster.members().iter().map(|member| async {
        let puller = member.puller("reg.test");
        let reply = puller.head("acme/app", "manifests/v1").await?.expect(StatusCode::OK)?;
        Ok(reply.header("docker-content-digest").to_owned())
    }))
    .await
}

/// One asks, and all are told; who asks after the answer came asks anew.
#[test]
fn one_request_is_in_flight() {
    run(async {
        let image = Image::tiny(1);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(5, None)?.start().await?;
        // The longer ones outlast an owner's patience with a question, and with one who asks and says nothing.
        for slow in [700, 2500, 3500].map(Duration::from_millis) {
            stage.registry.clear_log();
            stage.registry.fault(When::path("manifests/v1"), Fault::SlowHead(slow));
            let answers = heads(&cluster).await?;
            ensure!(answers.iter().all(|digest| *digest == image.root().digest));
            ensure!(stage.registry.count("HEAD", "manifests/v1") == 1, "{slow:?}: {}", stage.registry.shown(""));
            stage.registry.heal();
        }

        // Moved, it is seen at once.
        let moved = Image::tiny(2);
        stage.registry.add(&moved, "acme/app", "v1");
        let answers = heads(&cluster).await?;
        ensure!(answers.iter().all(|digest| *digest == moved.root().digest), "{answers:?}");
        Ok(())
    });
}

/// With `tags.max_age`, once in that time for all of them, whoever is started again meanwhile.
#[test]
fn young_answers_are_shared() {
    run(async {
        let image = Image::tiny(3);
        let stage = Stage::with(&image, None)?;
        let old = |_: usize, config: &mut larder_integration::AgentConfig| {
            config.set_text("tags", "max_age", "1h");
        };
        let mut cluster = stage.nodes(4, None)?.configure(old).start().await?;
        for number in 0..2 {
            cluster.member(number).pull(NAME).await?;
        }
        for number in 0..4 {
            cluster.member_mut(number).agent.stop()?;
        }
        for number in 0..4 {
            cluster.member_mut(number).agent.start_again().await?;
        }
        cluster.settle().await?;
        for member in cluster.members() {
            member.pull(NAME).await?;
        }
        ensure!(stage.registry.count("HEAD", "manifests/v1") == 1, "{}", stage.registry.shown(""));
        Ok(())
    });
}

/// The registry is gone: whoever asks is told the newest answer that anybody had.
#[test]
fn the_newest_answer_is_given_in_an_outage() {
    run(async {
        let (old, new) = (Image::tiny(4), Image::tiny(5));
        let mut stage = Stage::with(&old, None)?;
        let cluster = stage.nodes(4, None)?.start().await?;
        cluster.member(0).pull(NAME).await?;
        cluster.member(1).pull(NAME).await?;
        stage.registry.add(&new, "acme/app", "v1");
        // What a node keeps of an answer tells times apart by the second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        cluster.member(1).pull(NAME).await?;
        stage.registry.refuse();
        for (number, member) in cluster.members().iter().enumerate() {
            let fetched = member.pull(NAME).await?;
            ensure!(fetched.root == new.root().digest, "node {number} was given an older answer");
        }
        Ok(())
    });
}

/// An owner is frozen, and still counts as a member: the other one says whose turn it is.
#[test]
fn an_owner_is_frozen() {
    run(async {
        let (image, stage) = (Image::tiny(7), Stage::new(None)?);
        // Enough of them that it owns some.
        let tags: Vec<String> = (0..16).map(|number| format!("tag-{number}-")).collect();
        tags.iter().for_each(|tag| stage.registry.add(&image, "acme/app", tag));
        let cluster = stage.nodes(4, None)?.start().await?;
        stage.registry.fault(When::path("manifests/"), Fault::SlowHead(Duration::from_millis(700)));
        cluster.member(0).agent.freeze()?;
        let members = &cluster.members()[1..];
        let ask = async |puller: larder_integration::Puller, tag: &str| {
            let reply = puller.head("acme/app", &format!("manifests/{tag}")).await?;
            reply.expect(StatusCode::OK).map(drop)
        };
        let all = members.iter().flat_map(|member| tags.iter().map(|tag| ask(member.puller("reg.test"), tag)));
        within(Duration::from_secs(5), try_join_all(all)).await?;
        for tag in &tags {
            ensure!(stage.registry.count("HEAD", tag) == 1, "{tag}: {}", stage.registry.shown(""));
        }
        Ok(())
    });
}

/// Who was to ask is killed while it asks: another does.
#[test]
fn who_asks_is_killed() {
    run(async {
        let image = Image::tiny(6);
        let stage = Stage::with(&image, None)?;
        let mut cluster = stage.nodes(4, None)?.start().await?;
        stage.registry.fault(When::path("manifests/v1").first(1), Fault::Silent);
        let pullers: Vec<_> = cluster.members().iter().map(|member| member.puller("reg.test")).collect();
        let mut asking = tokio::task::JoinSet::new();
        for (number, puller) in pullers.into_iter().enumerate() {
            asking.spawn(async move { (number, puller.head("acme/app", "manifests/v1").await) });
        }
        let asker = larder_integration::until("one asks", Duration::from_secs(5), async || {
            let from = stage.registry.requests().first()?.from?;
            cluster.members().iter().position(|member| member.host.address() == from)
        })
        .await?;
        cluster.member_mut(asker).agent.kill();
        while let Some(answer) = asking.join_next().await {
            let (number, reply) = answer?;
            if number != asker {
                reply?.expect(StatusCode::OK)?;
            }
        }
        Ok(())
    });
}
