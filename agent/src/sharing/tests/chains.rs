//! One download for several nodes.

use tokio::sync::watch;
use tokio::time::timeout;

use super::node::{Node, PATIENCE, World, content, eventually};
use crate::image::{Access, Digest};
use crate::peers::{Trace, Turn};
use crate::store::Reason;

const MIB: usize = 1 << 20;

fn frontier(world: &World, node: usize, digest: &Digest) -> u64 {
    let shown = world.nodes[node].peers.shown();
    shown.reading.iter().find(|reading| reading.digest == *digest).map_or(0, |reading| reading.frontier)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_read_along_while_one_fetches() {
    let world = World::new(3);
    let bytes = content(1, 8 * MIB);
    let digest = Digest::of(&bytes);
    let upstream = watch::Sender::new(2 * MIB as u64);
    let pulls = futures_util::future::join_all(world.nodes.iter().map(|node| node.pull(&bytes, upstream.subscribe())));
    let half_way = async {
        // Upstream stands still after 2 MiB: they reach everybody all the same, through each other.
        for node in 0..3 {
            eventually("the first part is everywhere", || frontier(&world, node, &digest) == 2 * MIB as u64).await;
        }
        upstream.send_replace(u64::MAX);
    };
    let (all, ()) = tokio::join!(pulls, half_way);
    assert!(all.iter().all(|got| *got == bytes));
    assert_eq!(world.fetched(), bytes.len() as u64, "each byte came from upstream once");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_reads_from_who_has_it() {
    let world = World::new(3);
    let bytes = content(2, 300_000);
    let upstream = watch::Sender::new(u64::MAX);
    world.nodes[0].pull(&bytes, upstream.subscribe()).await;
    assert_eq!(world.fetched(), bytes.len() as u64);
    world.nodes[1].pull(&bytes, upstream.subscribe()).await;
    world.nodes[2].pull(&bytes, upstream.subscribe()).await;
    assert_eq!(world.fetched(), bytes.len() as u64, "it was in the cluster");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_announced_and_what_is_evicted_withdrawn() {
    let world = World::new(3);
    let bytes = world.content_owned_by_others(10_000, &[0]);
    let digest = Digest::of(&bytes);
    let owner = world.owners(&digest)[0];
    let (registry, repository) = ("docker.io".parse().unwrap(), "a/b".parse().unwrap());
    let known = |owner: usize| world.nodes[owner].peers.shown().known;
    let put = world.nodes[0].store.put(&digest, bytes.clone().into(), None, &registry, &repository, Access::Anonymous);
    put.await.unwrap();
    eventually("its owner knows of it", || known(owner) == 1).await;

    world.nodes[0].shelf.put(&bytes);
    let upstream = watch::Sender::new(u64::MAX);
    world.nodes[1].pull(&bytes, upstream.subscribe()).await;
    assert_eq!(world.fetched(), 0, "it was in the cluster");

    world.nodes[0].store.drop_blobs(vec![digest], Reason::MaxBytes).await;
    let holders = if owner == 1 { 1 } else { known(owner) };
    assert!(holders >= 1, "who has just read it holds it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_private_is_not_there_for_another_registry() {
    let world = World::new(3);
    let bytes = world.content_owned_by_others(10_000, &[0]);
    let digest = Digest::of(&bytes);
    let owners = world.owners(&digest);
    let (registry, repository) = ("private.test".parse().unwrap(), "a/b".parse().unwrap());
    let put = world.nodes[0].store.put(&digest, bytes.clone().into(), None, &registry, &repository, Access::Authorized);
    put.await.unwrap();
    // Whichever of them is asked: the second, when the first is late.
    eventually("its owners know of it", || owners.iter().all(|owner| world.nodes[*owner].peers.shown().known == 1))
        .await;

    let follow = |registry: &str, access| {
        let mut sought = Node::sought(digest);
        (sought.registry, sought.access) = (registry.parse().unwrap(), access);
        world.nodes[1].peers.follow(sought, None, 0, &Trace::new())
    };
    let zero = world.nodes[0].node;
    let mut own = follow("private.test", Access::Authorized);
    let is_sent_there = async {
        // An owner that is late has it begin at upstream, and go over as soon as it answers.
        while !matches!(own.turn(), Turn::Peer(peer) if peer.node() == zero) {
            own.changed().await;
        }
    };
    timeout(PATIENCE, is_sent_there).await.expect("who may have it is sent to who has it");
    for access in [Access::Authorized, Access::Anonymous] {
        let mut other = follow("hostile.test", access);
        let turn = async {
            // Before, an owner that is late would have it fetch as well.
            other.answered().await;
            loop {
                match other.turn() {
                    Turn::Wait => other.changed().await,
                    turn => return turn,
                }
            }
        };
        let turn = timeout(PATIENCE, turn).await.expect("an owner answers");
        assert!(matches!(turn, Turn::Upstream { .. }), "{turn:?}");
    }
}
