//! One question to upstream about a tag.

use std::time::Duration;

use tokio::time::timeout;

use super::node::{PATIENCE, World};
use crate::cluster::chain::Lease;
use crate::cluster::directory::{TagAnswer, TagAsk, TagKey};
use crate::cluster::{Member, Ring};
use crate::image::{Access, Digest, MediaType, NodeId};
use crate::peers::{Credential, TagLease, TagMeaning, TagSought, TagTurn, Trace, messages};

fn sought() -> TagSought {
    TagSought {
        registry: "docker.io".parse().unwrap(),
        repository: "library/nginx".parse().unwrap(),
        tag: "latest".parse().unwrap(),
        credential: Credential::Anonymous,
        max_age: Duration::ZERO,
        patience: PATIENCE,
    }
}

fn key() -> TagKey {
    let TagSought { registry, repository, tag, credential, .. } = sought();
    TagKey { registry, repository, tag, credential }
}

fn answer() -> TagMeaning {
    let (digest, media_type) = (Digest::of(b"manifest"), MediaType::octet_stream());
    TagMeaning { digest, media_type, size: 8, age: Duration::ZERO, access: Access::Anonymous }
}

/// What a node's disk knows of the tag.
async fn stored(world: &World, number: usize) -> Option<Digest> {
    let TagKey { registry, repository, tag, .. } = key();
    world.nodes[number].store.tag(&registry, &repository, &tag).await.map(|record| record.digest)
}

/// A node's turn, as soon as its owners answer: a busy machine may take longer than they are given.
async fn turn_of(world: &World, number: usize, tag: &TagSought, trace: &Trace) -> TagTurn {
    let turn = async {
        loop {
            match world.nodes[number].peers.tag(tag, trace).await {
                TagTurn::Alone => {}
                turn => return turn,
            }
        }
    };
    timeout(PATIENCE, turn).await.unwrap()
}

/// That of the first node, when nobody has asked yet.
async fn turn_to_ask(world: &World, tag: &TagSought, trace: &Trace) -> TagLease {
    match turn_of(world, 0, tag, trace).await {
        TagTurn::Ask(lease) => lease,
        turn => panic!("nobody has asked yet: {turn:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_asks_and_the_others_are_told() {
    let world = World::new(3);
    world.agrees().await;
    let (tag, trace) = (sought(), Trace::new());
    let lease = turn_to_ask(&world, &tag, &trace).await;
    let others = world.nodes[1..].iter().map(|node| node.peers.tag(&tag, &trace));
    let others = futures_util::future::join_all(others);
    tokio::pin!(others);
    assert!(timeout(Duration::from_millis(100), &mut others).await.is_err(), "they wait");
    lease.told(answer());
    for turn in timeout(PATIENCE, others).await.unwrap() {
        let TagTurn::Answer(told) = turn else { panic!("{turn:?}") };
        assert_eq!(told.digest, answer().digest);
    }
    // Another credential may be told something else.
    let other = TagSought { credential: Credential::Keyed([1; 32]), ..tag.clone() };
    assert!(matches!(world.nodes[1].peers.tag(&other, &trace).await, TagTurn::Ask(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_dropped_passes_on() {
    let world = World::new(3);
    world.agrees().await;
    let (tag, trace) = (sought(), Trace::new());
    let turn = world.nodes[0].peers.tag(&tag, &trace).await;
    let (next, ()) = tokio::join!(world.nodes[1].peers.tag(&tag, &trace), async { drop(turn) });
    assert!(matches!(next, TagTurn::Ask(_)), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_is_known_when_no_upstream_answers() {
    let world = World::new(4);
    world.agrees().await;
    let (tag, trace) = (sought(), Trace::new());
    assert_eq!(world.nodes[0].peers.newest(&tag, &trace).await, None);
    let lease = turn_to_ask(&world, &tag, &trace).await;
    lease.told(answer());
    let known = async {
        loop {
            if let Some(known) = world.nodes[3].peers.newest(&tag, &trace).await {
                return known;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(timeout(PATIENCE, known).await.unwrap().digest, answer().digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn they_wait_as_long_as_upstream_is_being_asked() {
    let world = World::new(3);
    world.agrees().await;
    let (tag, trace) = (sought(), Trace::new());
    let lease = turn_to_ask(&world, &tag, &trace).await;
    let others = world.nodes[1..].iter().map(|node| node.peers.tag(&tag, &trace));
    let others = futures_util::future::join_all(others);
    tokio::pin!(others);
    // Longer than an owner holds a question, and than a lease is good for without a word.
    assert!(timeout(Duration::from_secs(4), &mut others).await.is_err(), "they wait");
    lease.told(answer());
    for turn in timeout(PATIENCE, others).await.unwrap() {
        assert!(matches!(turn, TagTurn::Answer(_)), "{turn:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_owner_believes_the_first_alone() {
    let world = World::new(3);
    world.agrees().await;
    let owners = world.owners_of_tag(&key());
    let [first, second] = owners[..] else { panic!("{owners:?}") };
    let other = 3 - first - second;
    let report = async |number: usize, from: usize, lease: Option<Lease>, meaning: &TagMeaning| {
        let report = messages::tag_report_of(&key(), lease, Some(meaning));
        world.nodes[number].peers.directory().report_tag(world.nodes[from].node, report).await.unwrap();
    };
    for (number, from) in [(first, second), (first, other), (second, other), (other, first), (other, second)] {
        report(number, from, None, &answer()).await;
        report(number, from, Some(Lease(7)), &answer()).await;
        assert_eq!(stored(&world, number).await, None, "{number} believes {from}");
    }
    report(second, first, Some(Lease(7)), &answer()).await;
    assert_eq!(stored(&world, second).await, None, "it gave no such lease");
    report(second, first, None, &answer()).await;
    assert_eq!(stored(&world, second).await, Some(answer().digest));
}

/// Views of who is a member differ for a moment. Who is asked first takes one for the owner that has gone, or nobody.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_owner_in_its_own_view_leads_to_the_second() {
    for names_one in [true, false] {
        let world = World::new(3);
        world.agrees().await;
        let owners = world.owners_of_tag(&key());
        let [first, second] = owners[..] else { panic!("{owners:?}") };
        let other = 3 - first - second;
        let gone = Member { node: NodeId::new([9; 16]), ..world.nodes[first].member() };
        world.nodes[first].believes(Ring::new(world.nodes[first].node, names_one.then_some(gone)));
        let trace = Trace::new();
        world.agrees().await;
        let turn = world.nodes[other].peers.tag(&sought(), &trace).await;
        assert!(matches!(turn, TagTurn::Ask(_)), "{turn:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_young_answer_outlives_the_first_owner() {
    let world = World::new(3);
    world.agrees().await;
    let owners = world.owners_of_tag(&key());
    let [first, second] = owners[..] else { panic!("{owners:?}") };
    let other = 3 - first - second;
    let (tag, trace) = (TagSought { max_age: Duration::from_secs(3600), ..sought() }, Trace::new());
    turn_to_ask(&world, &sought(), &trace).await.told(answer());
    let told = async {
        while stored(&world, second).await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("the second owner is told");
    assert!(matches!(turn_of(&world, other, &tag, &trace).await, TagTurn::Answer(_)), "it knows as whom");

    world.nodes[first].kill();
    world.are_up(&[second, other]);
    world.agrees().await;
    let turn = turn_of(&world, other, &tag, &trace).await;
    let TagTurn::Known(known) = turn else { panic!("{turn:?}") };
    assert_eq!((known.digest, known.access), (answer().digest, Access::Authorized));
    // An older version wouldn't understand that.
    let older = TagAsk { key: key(), max_age: tag.max_age, waited: None, owner_failed: false };
    let asked = messages::tag_ask_of(&older, &trace);
    let reply = world.nodes[second].peers.directory().ask_tag(world.nodes[other].node, asked).await.unwrap();
    assert!(matches!(messages::tag_answer(reply), Ok(TagAnswer::Lease(_))));
}
