//! What becomes of a chain when somebody goes, is slow, or sends what it shouldn't.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder_proto::peers::{Data, ReadReply, read_reply};
use tokio::sync::watch;
use tokio::time::timeout;

use super::impostor::{Impostor, head};
use super::node::{PATIENCE, World, content, eventually};
use crate::cluster::Bucket;
use crate::cluster::chain::Parting;
use crate::config;
use crate::image::Digest;
use crate::peers::frames::framed;
use crate::peers::{Failed, Follow, Peer, PeerError, Trace, Turn};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn when_one_in_the_middle_dies_the_others_go_on() {
    let world = World::new(5);
    // The directory isn't what is tested here: who dies owns nothing of this blob.
    let bytes = world.content_owned_by_others(12 * MIB, &[0, 1, 2]);
    let digest = Digest::of(&bytes);
    let upstream = watch::Sender::new(3 * MIB as u64);
    let pull = |n: usize| world.nodes[n].pull(&bytes, upstream.subscribe());
    let frontier = |n: usize| {
        let shown = world.nodes[n].peers.shown();
        shown.reading.iter().find(|reading| reading.digest == digest).map_or(0, |reading| reading.frontier)
    };
    let dies = async {
        for n in 0..3 {
            eventually("the first part is everywhere", || frontier(n) == 3 * MIB as u64).await;
        }
        let shown: Vec<_> = (0..3).map(|n| world.nodes[n].peers.shown()).collect();
        let middle = (0..3).find(|n| {
            let reads = shown[*n].reading.iter().any(|reading| reading.parent.is_some());
            reads && !shown[*n].uploads.is_empty()
        });
        let middle = middle.expect("three in a chain have one in the middle");
        world.nodes[middle].kill();
        upstream.send_replace(u64::MAX);
        middle
    };
    let survivors = async {
        let mut pulls: Vec<_> = (0..3).map(|n| Box::pin(pull(n))).collect();
        let mut done = Vec::new();
        while done.len() < 2 {
            let (bytes, at, left) = futures_util::future::select_all(pulls).await;
            done.push((at, bytes));
            pulls = left;
        }
        done
    };
    let (done, died) = tokio::join!(survivors, dies);
    assert!(done.iter().all(|(_, got)| *got == bytes));
    let fetched = world.fetched() - world.nodes[died].fetched.load(Ordering::Relaxed);
    // The one that died may have had the lease; what was under way under it is fetched once more.
    assert!(fetched <= (bytes.len() + 8 * MIB) as u64, "{fetched} bytes fetched");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_owner_dies_the_second_answers() {
    let world = World::new(4);
    let bytes = content(7, 2 * MIB);
    let owner = world.owners(&Digest::of(&bytes))[0];
    // Nobody has noticed yet: it is still among the members.
    world.nodes[owner].kill();
    let others: Vec<usize> = (0..4).filter(|n| *n != owner).collect();
    let upstream = watch::Sender::new(u64::MAX);
    let began = Instant::now();
    world.nodes[others[0]].pull(&bytes, upstream.subscribe()).await;
    world.nodes[others[1]].pull(&bytes, upstream.subscribe()).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(world.fetched(), bytes.len() as u64, "the second owner knew of the first copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_gives_its_lease_back() {
    let world = World::new(3);
    let bytes = world.content_owned_by_others(4 * MIB, &[0]);
    let digest = Digest::of(&bytes);
    let mut first = world.nodes[0].peers.follow(super::node::Node::sought(digest), Some(4 << 20), 0, &Trace::new());
    while !matches!(first.turn(), Turn::Upstream { .. }) {
        first.changed().await;
    }
    let upstream = watch::Sender::new(u64::MAX);
    let began = Instant::now();
    let (got, ()) = tokio::join!(world.nodes[1].pull(&bytes, upstream.subscribe()), async { drop(first) });
    assert_eq!(got, bytes);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

/// Else the first, now behind it, would come back to it by everybody else, and all of them would wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn who_goes_to_the_end_of_its_chain_lets_go_who_waits_for_it_to_begin() {
    let world = World::new(4);
    let bytes = world.content_owned_by_others(4 * MIB, &[0, 1]);
    let digest = Digest::of(&bytes);
    world.nodes[0].shelf.await_in_vain(digest);
    let follow = |n: usize| world.nodes[n].peers.follow(super::node::Node::sought(digest), None, 0, &Trace::new());
    let mut first = follow(0);
    while !matches!(first.turn(), Turn::Upstream { .. }) {
        first.changed().await;
    }
    let mut second = follow(1);
    let opened = parent(&mut second).await;
    let goes_to_the_end = async {
        first.failed(&Failed::Unreachable);
        // From behind it nothing but its own path comes back.
        assert_eq!(parent(&mut first).await.node(), world.nodes[1].node);
    };
    let (opened, ()) = timeout(PATIENCE, async { tokio::join!(opened.open(0, None), goes_to_the_end) }).await.unwrap();
    let parted = opened.expect_err("there is nothing to read");
    assert!(matches!(parted, PeerError::Parted { parting: Parting::NotLower, .. }), "{parted}");
}

async fn parent(follow: &mut Follow) -> Peer {
    loop {
        match follow.turn() {
            Turn::Peer(peer) => return peer,
            _ => follow.changed().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_held_to_their_limit() {
    let limited = |config: &mut config::Peers| config.max_upload = Some(config::Bytes(2 << 20));
    let world = World::with(2, limited);
    let bytes = content(3, 2 * MIB);
    let upstream = watch::Sender::new(u64::MAX);
    world.nodes[0].pull(&bytes, upstream.subscribe()).await;
    let began = Instant::now();
    world.nodes[1].pull(&bytes, upstream.subscribe()).await;
    // The first piece is free, and beats keep a stream alive that waits for its turn.
    assert!(began.elapsed() > Duration::from_millis(600), "{:?}", began.elapsed());
    assert_eq!(world.fetched(), bytes.len() as u64);
}

/// As the background does between its pieces, for longer than any peer may be silent.
#[tokio::test(flavor = "multi_thread")]
async fn who_rests_of_its_own_will_stays_with_its_peer() {
    let world = World::new(2);
    let (bytes, upstream) = (content(30, 4 * MIB), watch::Sender::new(u64::MAX));
    world.nodes[0].pull(&bytes, upstream.subscribe()).await;
    let sought = super::node::Node::sought(Digest::of(&bytes));
    let mut follow = world.nodes[1].peers.follow(sought, Some(bytes.len() as u64), 0, &Trace::new());
    let peer = loop {
        match follow.turn() {
            Turn::Peer(peer) => break peer,
            _ => follow.changed().await,
        }
    };
    let (mut stream, mut at, rest) = (peer.open(0, None).await.unwrap(), 0, Duration::from_millis(1_200));
    for _ in 0..3 {
        at += stream.frame().await.unwrap().unwrap().len() as u64;
        follow.arrived(at);
        stream.rests(rest);
        tokio::time::sleep(rest).await;
        assert!(matches!(follow.turn(), Turn::Peer(now) if now == peer), "{:?}", follow.turn());
    }
}

/// Its disk hangs, say, and beats go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_sends_nothing_is_waited_for_once() {
    let world = World::new(2);
    let mut blobs: Vec<Vec<u8>> = (40..60).map(|seed| content(seed, 100_000)).collect();
    let mut buckets = HashSet::new();
    blobs.retain(|bytes| buckets.insert(Bucket::of(&Digest::of(bytes))));
    let digests: Vec<Digest> = blobs.iter().map(|bytes| Digest::of(bytes)).collect();
    let holder = Impostor::start_giving_nothing(&world, &digests, 100_000);
    let upstream = watch::Sender::new(u64::MAX);
    let mut left = blobs.iter();
    // Owners that are late, on a busy machine, name nobody.
    while holder.asked() == 0 {
        world.nodes[0].pull(left.next().unwrap(), upstream.subscribe()).await;
    }
    let (asked, further) = (holder.asked(), left.take(5));
    for bytes in further {
        world.nodes[0].pull(bytes, upstream.subscribe()).await;
    }
    assert_eq!(holder.asked(), asked, "other blobs are asked of it too");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_bytes_are_not_taken() {
    let world = World::new(2);
    let bytes = content(4, 100_000);
    let digest = Digest::of(&bytes);
    // It sends another checksum than its bytes have.
    let data = Data { checksum: crc32fast::hash(&bytes) ^ 1, bytes: Bytes::from(bytes.clone()) };
    let parts = [read_reply::Part::Head(head(bytes.len())), read_reply::Part::Data(data)];
    let replies = parts.into_iter().flat_map(|part| framed(&ReadReply { part: Some(part) })).collect();
    let liar = Impostor::start(&world, digest, replies);
    let (peer, _follow) = world.peer_for(digest).await;
    let mut stream = peer.open(0, None).await.unwrap();
    assert_eq!(stream.frame().await, Err(PeerError::Damaged { node: liar.node }));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_peer_may_be_silent_is_for_the_machine_to_say() {
    let world = World::new(2);
    let bytes = content(5, 100_000);
    let digest = Digest::of(&bytes);
    let data = Data { checksum: crc32fast::hash(&bytes), bytes: Bytes::from(bytes.clone()) };
    let parts = [read_reply::Part::Head(head(bytes.len())), read_reply::Part::Data(data)];
    let replies = parts.map(|part| framed(&ReadReply { part: Some(part) }).into());
    // Over full links, beats and bytes come as late as this.
    let _impostor = Impostor::start_pausing(&world, digest, replies, Duration::from_millis(1_000));
    let (peer, _follow) = world.peer_for(digest).await;
    let mut stream = peer.open(0, None).await.unwrap();
    assert_eq!(stream.frame().await, Ok(Some(Bytes::from(bytes))));
}
