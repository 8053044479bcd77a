//! One question to upstream about a tag.

use std::time::Duration;

use tokio::time::timeout;

use super::node::{PATIENCE, World};
use crate::image::{Access, Digest, MediaType};
use crate::peers::{Credential, TagLease, TagMeaning, TagSought, TagTurn, Trace};

fn sought() -> TagSought {
    TagSought {
        registry: "docker.io".parse().unwrap(),
        repository: "library/nginx".parse().unwrap(),
        tag: "latest".parse().unwrap(),
        credential: Credential::Anonymous,
        max_age: Duration::ZERO,
    }
}

fn answer() -> TagMeaning {
    let (digest, media_type) = (Digest::of(b"manifest"), MediaType::octet_stream());
    TagMeaning { digest, media_type, size: 8, age: Duration::ZERO, access: Access::Anonymous }
}

/// The first node's turn, as soon as its owners answer: a busy machine may take longer than they are given.
async fn turn_to_ask(world: &World, tag: &TagSought, trace: &Trace) -> TagLease {
    loop {
        match world.nodes[0].peers.tag(tag, trace).await {
            TagTurn::Ask(lease) => return lease,
            TagTurn::Alone => {}
            TagTurn::Answer(answer) => panic!("nobody has asked yet: {answer:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_asks_and_the_others_are_told() {
    let world = World::new(3);
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
    let (tag, trace) = (sought(), Trace::new());
    let turn = world.nodes[0].peers.tag(&tag, &trace).await;
    let (next, ()) = tokio::join!(world.nodes[1].peers.tag(&tag, &trace), async { drop(turn) });
    assert!(matches!(next, TagTurn::Ask(_)), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_is_known_when_no_upstream_answers() {
    let world = World::new(4);
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
