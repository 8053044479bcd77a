//! Transfers that obey the cluster: turns that change, peers that fail, lie, and have what isn't for everybody.

use std::time::Instant;

use super::neighbour::{Habit, node, peer, peer_at};
use super::*;
use crate::image::{Access, NodeId};
use crate::peers::script::{Script, Told};
use crate::peers::{BlobOf, Failed, Parted, Peer, Right, Turn};
use crate::pull::{Ended, NotShared};
use crate::upstream::Credentials;

pub(super) const FETCH_ALL: Turn = Turn::Upstream { upto: u64::MAX };

/// A node of a cluster that does what a script says.
pub(super) fn in_cluster(blob: &Bytes, registries: &[&Registry], script: &Script) -> Node {
    Node::among(blob, registries, "", Some(Peers::scripted(script)))
}

fn failed(script: &Script) -> Vec<Failed> {
    let failed = |told| match told {
        Told::Failed(why) => Some(why),
        _ => None,
    };
    script.told().into_iter().filter_map(failed).collect()
}

fn broke(script: &Script) -> Vec<(Vec<String>, Option<NodeId>)> {
    let broke = |told| match told {
        Told::Broke(sources, peer) => Some((sources, peer)),
        _ => None,
    };
    script.told().into_iter().filter_map(broke).collect()
}

fn opened_once(peer: &Peer) -> Range<u64> {
    let opened = peer.opened();
    assert_eq!(opened.len(), 1, "{opened:?}");
    opened[0].clone()
}

pub(super) fn name(registry: &Registry) -> String {
    registry.address.to_string()
}

#[tokio::test]
async fn what_a_peer_has_is_not_fetched() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let from = peer(1, &blob, Habit::default());
    script.turn(Turn::Peer(from.clone()));
    let node = in_cluster(&blob, &[&upstream], &script);
    node.whole().await.unwrap();
    node.stored().await;
    assert_eq!(upstream.asked(), []);
    assert_eq!(opened_once(&from), 0..u64::MAX);
    let told = script.told();
    assert_eq!(told.first(), Some(&Told::Size(8 * MIB)));
    assert!(told.contains(&Told::Arrived(8 * MIB)) && told.contains(&Told::Whole), "{told:?}");
    let arrived = told.iter().filter(|told| matches!(told, Told::Arrived(_))).count();
    assert!(arrived <= 20, "not for every piece: {arrived}");
}

#[tokio::test]
async fn so_is_a_small_one() {
    let blob = blob(1);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    script.turn(Turn::Peer(peer(1, &blob, Habit::default())));
    let node = in_cluster(&blob, &[&upstream], &script);
    node.whole().await.unwrap();
    assert_eq!(upstream.asked(), []);
    assert!(script.told().contains(&Told::Whole));
}

#[tokio::test]
async fn a_turn_that_changes_on_the_way_is_obeyed() {
    let blob = blob(16);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let from = peer(1, &blob, Habit::default());
    script.turn(Turn::Upstream { upto: 4 * MIB });
    script.at(4 * MIB, Turn::Peer(from.clone()));
    script.at(9 * MIB, FETCH_ALL);
    let node = in_cluster(&blob, &[&upstream], &script);
    node.whole().await.unwrap();
    assert_eq!(opened_once(&from), 4 * MIB..u64::MAX);
    let asked = upstream.asked();
    assert_eq!(asked.first(), Some(&(0..4 * MIB)));
    assert!(asked.len() == 2 && asked[1].start >= 9 * MIB && asked[1].end == 16 * MIB, "{asked:?}");
}

#[tokio::test]
async fn nothing_is_fetched_beyond_the_turn() {
    let blob = blob(16);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    script.turn(Turn::Upstream { upto: 4 * MIB });
    let node = in_cluster(&blob, &[&upstream], &script);
    let found = node.fetch(0).await.unwrap();
    let whole = async { node.check(found.read(), 0..16 * MIB).await };
    let turns = async {
        told(&script, &Told::Arrived(4 * MIB)).await;
        assert_eq!(upstream.asked_once(), 0..4 * MIB);
        script.turn(Turn::Wait);
        script.turn(Turn::Upstream { upto: 12 * MIB });
        told(&script, &Told::Arrived(12 * MIB)).await;
        assert_eq!(upstream.asked(), [0..4 * MIB, 4 * MIB..12 * MIB]);
        script.turn(FETCH_ALL);
    };
    let (whole, ()) = tokio::join!(whole, turns);
    whole.unwrap();
    assert_eq!(upstream.asked().last(), Some(&(12 * MIB..16 * MIB)));
    assert_eq!(upstream.sent(), 16 * MIB);
}

#[tokio::test]
async fn a_turn_that_grows_is_not_waited_for() {
    let blob = blob(24);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.always(Manner { rate: Some(16 * MIB), wait: Duration::from_millis(100), ..Manner::default() });
    script.turn(Turn::Upstream { upto: 8 * MIB });
    script.at(4 * MIB, Turn::Upstream { upto: 16 * MIB });
    script.at(12 * MIB, Turn::Upstream { upto: 24 * MIB });
    let node = in_cluster(&blob, &[&upstream], &script);
    node.whole().await.unwrap();
    let mut asked = upstream.asked();
    asked.sort_by_key(|part| part.start);
    assert!(asked.windows(2).all(|pair| pair[0].end == pair[1].start), "nothing twice: {asked:?}");
    assert_eq!(upstream.sent(), 24 * MIB);
    assert_eq!(upstream.busiest(), 2, "the next part is asked for before the one before it has ended");
}

#[tokio::test]
async fn what_others_read_along_comes_by_two_connections_at_the_most() {
    let blob = blob(64);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.always(Manner { rate: Some(8 * MIB), ..Manner::default() });
    script.turn(Turn::Upstream { upto: 48 * MIB });
    script.at(40 * MIB, Turn::Upstream { upto: 64 * MIB });
    let node = in_cluster(&blob, &[&upstream], &script);
    node.whole().await.unwrap();
    // Each is limited, so that two are worth it; one that has been left may still be open.
    assert!((2..=3).contains(&upstream.busiest()), "{}", upstream.busiest());
}

#[tokio::test]
async fn how_fast_a_peer_was_says_nothing_of_upstream() {
    let blob = blob(48);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.always(Manner { rate: Some(16 * MIB), ..Manner::default() });
    let slow = peer(1, &blob, Habit { rate: Some(4 * MIB), ..Habit::default() });
    script.turn(Turn::Peer(slow));
    script.at(4 * MIB, Turn::Upstream { upto: 40 * MIB });
    script.at(30 * MIB, FETCH_ALL);
    let node = in_cluster(&blob, &[&upstream], &script);
    node.whole().await.unwrap();
    let asked = upstream.asked();
    assert!(asked[0].start < 6 * MIB, "{asked:?}");
    // Not before it has been measured for a moment.
    assert!(asked[1].start >= asked[0].start + 4 * MIB, "{asked:?}");
}

#[tokio::test]
async fn where_a_peer_ends_the_next_goes_on() {
    let blob = blob(16);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let first = peer(1, &blob, Habit { cut_at: Some(5 * MIB + 17), ..Habit::default() });
    let second = peer(2, &blob, Habit { cut_at: Some(9 * MIB), ..Habit::default() });
    script.turn(Turn::Peer(first));
    script.then(Turn::Peer(second.clone()));
    script.then(FETCH_ALL);
    let node_ = in_cluster(&blob, &[&upstream], &script);
    node_.whole().await.unwrap();
    assert_eq!(opened_once(&second), 5 * MIB + 17..u64::MAX);
    assert_eq!(upstream.asked_once(), 9 * MIB..16 * MIB);
    assert_eq!(failed(&script), [Failed::Peer(node(1)), Failed::Peer(node(2))]);
}

#[tokio::test]
async fn a_peer_that_is_no_use_at_the_beginning_costs_nothing_but_its_turn() {
    let blob = blob(4);
    for habit in [
        Habit { size: Some(5 * MIB), ..Habit::default() },
        Habit { cut_at: Some(0), ..Habit::default() },
        Habit { access: Access::Authorized, ..Habit::default() },
    ] {
        let (upstream, script) = (Registry::start(&blob).await, Script::default());
        script.turn(Turn::Peer(peer(1, &blob, habit.clone())));
        script.then(FETCH_ALL);
        let node_ = in_cluster(&blob, &[&upstream], &script);
        node_.learn_size();
        node_.whole().await.unwrap();
        assert_eq!(upstream.asked().len(), 1, "{habit:?}");
        assert_eq!(failed(&script), [Failed::Peer(node(1))], "{habit:?}");
    }
}

#[tokio::test]
async fn leave_is_asked_for_once_whichever_peer_it_is() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let private = |cut_at| Habit { access: Access::Authorized, cut_at, ..Habit::default() };
    script.turn(Turn::Peer(peer(1, &blob, private(Some(3 * MIB)))));
    script.then(Turn::Peer(peer(2, &blob, private(Some(6 * MIB)))));
    script.then(Turn::Peer(peer(3, &blob, private(None))));
    let mut node = in_cluster(&blob, &[&upstream], &script);
    node.wanted.grant = alice();
    node.whole().await.unwrap();
    assert_eq!((upstream.heads(), upstream.asked().len()), (1, 0));
}

#[tokio::test]
async fn where_upstream_has_nothing_a_peer_may() {
    let blob = blob(4);
    for (status, why) in [(404, Failed::Absent), (403, Failed::Unauthorized), (503, Failed::Unreachable)] {
        let (upstream, script) = (Registry::start(&blob).await, Script::default());
        upstream.always(Manner { status: Some(status), ..Manner::default() });
        script.turn(FETCH_ALL);
        script.then(Turn::Peer(peer(1, &blob, Habit::default())));
        let node = in_cluster(&blob, &[&upstream], &script);
        node.whole().await.unwrap();
        assert_eq!(failed(&script), [why]);
    }
}

#[tokio::test]
async fn so_it_is_in_the_middle() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.then(Manner { cut_at: Some(3 * MIB), ..Manner::default() });
    upstream.always(Manner { status: Some(503), ..Manner::default() });
    script.turn(FETCH_ALL);
    let from = peer(1, &blob, Habit::default());
    script.then(Turn::Peer(from.clone()));
    let node = in_cluster(&blob, &[&upstream], &script);
    node.whole().await.unwrap();
    assert_eq!(opened_once(&from), 3 * MIB..u64::MAX);
    assert_eq!(failed(&script), [Failed::Unreachable]);
}

#[tokio::test]
async fn where_nobody_has_it_upstream_has_the_last_word() {
    let blob = blob(4);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.always(Manner { status: Some(404), ..Manner::default() });
    script.turn(FETCH_ALL);
    script.then(Turn::Peer(peer(1, &blob, Habit { cut_at: Some(0), ..Habit::default() })));
    script.then(FETCH_ALL);
    let node = in_cluster(&blob, &[&upstream], &script);
    assert!(matches!(node.fetch(0).await, Err(PullError::NotFound(_))));
    assert_eq!(upstream.asked().len(), 1, "it was asked already");
}

#[tokio::test]
async fn a_peer_that_lies_is_told_on() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let lying = Habit { wrong_byte: Some(7 * MIB + 5), parted: Parted::Held, ..Habit::default() };
    script.turn(Turn::Peer(peer(1, &blob, lying)));
    let node_ = in_cluster(&blob, &[&upstream], &script);
    assert_eq!(node_.whole().await, Err(EndedShort), "its last chunk is wrong, and isn't given");
    assert_eq!(broke(&script), [(vec![], Some(node(1)))]);
    script.turn(FETCH_ALL);
    node_.whole().await.unwrap();
}

#[tokio::test]
async fn an_upstream_that_lied_to_a_peer_is_to_blame() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    let script = Script::default();
    let wrong = Habit {
        wrong_byte: Some(7 * MIB + 5),
        sources: vec![name(&first)],
        parted: Parted::Broken(vec![name(&first)]),
        ..Habit::default()
    };
    script.turn(Turn::Peer(peer(1, &blob, wrong)));
    let node = in_cluster(&blob, &[&first, &second], &script);
    assert_eq!(node.whole().await, Err(EndedShort));
    assert_eq!(broke(&script), [(vec![name(&first)], None)]);
    script.turn(FETCH_ALL);
    node.whole().await.unwrap();
    assert_eq!((first.asked().len(), second.asked().len()), (0, 1));
}

/// One reads whatever comes, and is told in time that it isn't right.
async fn reads_wrong_bytes(node: &Node) {
    let mut reader = node.fetch(0).await.unwrap().read();
    while let Ok(bytes) = reader.next().await {
        assert!(bytes.is_some(), "it was given for whole");
    }
}

#[tokio::test]
async fn what_turns_out_wrong_at_a_peer_is_not_finished_here() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    let script = Script::default();
    let wrong = Habit { wrong_byte: Some(5), broken_at: Some((6 * MIB, vec![name(&first)])), ..Habit::default() };
    script.turn(Turn::Peer(peer(1, &blob, wrong)));
    let node = in_cluster(&blob, &[&first, &second], &script);
    reads_wrong_bytes(&node).await;
    assert_eq!(broke(&script), [(vec![name(&first)], None)]);
    script.turn(FETCH_ALL);
    node.whole().await.unwrap();
    assert_eq!((first.asked().len(), second.asked().len()), (0, 1));
}

#[tokio::test]
async fn peers_that_accuse_others_twice_are_not_asked_again() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let accusing = |name: &str| {
        let parted = Parted::Broken(vec![name.to_owned()]);
        Turn::Peer(peer(1, &blob, Habit { wrong_byte: Some(7 * MIB + 5), parted, ..Habit::default() }))
    };
    let node = in_cluster(&blob, &[&upstream], &script);
    for innocent in ["a:443", "b:443"] {
        script.turn(accusing(innocent));
        assert_eq!(node.whole().await, Err(EndedShort));
    }
    node.whole().await.unwrap();
    assert_eq!(upstream.asked_once(), 0..8 * MIB, "whatever the cluster says");
}

#[tokio::test]
async fn when_it_is_unclear_who_lied_one_alone_is_asked() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let wrong = Habit { wrong_byte: Some(7 * MIB + 5), ..Habit::default() };
    script.turn(Turn::Upstream { upto: 4 * MIB });
    script.at(4 * MIB, Turn::Peer(peer(1, &blob, wrong)));
    let node = in_cluster(&blob, &[&upstream], &script);
    assert_eq!(node.whole().await, Err(EndedShort));
    assert_eq!(broke(&script), []);
    node.whole().await.unwrap();
    assert_eq!(upstream.asked(), [0..4 * MIB, 0..8 * MIB], "whatever the cluster says");
}

/// A node that has a wrong half of the first upstream and a right one of a peer that says nothing of the whole, and two
/// upstreams to go on with.
async fn unclear(blob: &Bytes, first: &Registry, second: &Registry, script: &Script) -> Node {
    first.always(Manner { wrong_byte: Some(3 * MIB + 5), ..Manner::default() });
    script.turn(Turn::Upstream { upto: 4 * MIB });
    script.at(4 * MIB, Turn::Peer(peer(1, blob, Habit::default())));
    let node = in_cluster(blob, &[first, second], script);
    reads_wrong_bytes(&node).await;
    assert_eq!(broke(script), []);
    node
}

#[tokio::test]
async fn where_it_is_unclear_others_may_have_found_out() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    let script = Script::default();
    let node = unclear(&blob, &first, &second, &script).await;
    script.turn(Turn::Wait);
    script.broken(&[&name(&first)]);
    let from = peer(2, &blob, Habit::default());
    script.at(4 * MIB, Turn::Peer(from.clone()));
    let (whole, ()) = tokio::join!(node.whole(), async { script.turn(Turn::Upstream { upto: 4 * MIB }) });
    whole.unwrap();
    assert_eq!((first.asked().len(), second.asked_once()), (1, 0..4 * MIB), "who lied isn't asked again");
    assert_eq!(opened_once(&from), 4 * MIB..u64::MAX, "and the rest may come from whoever has it");
}

#[tokio::test]
async fn others_are_believed_once() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    let script = Script::default();
    let node = unclear(&blob, &first, &second, &script).await;
    script.broken(&["innocent:443"]);
    script.turn(Turn::Upstream { upto: 4 * MIB });
    script.at(4 * MIB, Turn::Peer(peer(2, &blob, Habit::default())));
    reads_wrong_bytes(&node).await;
    script.broken(&["innocent:443", "another:443"]);
    let unasked = peer(3, &blob, Habit::default());
    script.turn(Turn::Peer(unasked.clone()));
    node.whole().await.unwrap();
    assert_eq!(unasked.opened(), []);
    assert_eq!(second.asked_once(), 0..8 * MIB, "it is found out here who lies, before a byte goes out");
}

#[tokio::test]
async fn who_hears_nothing_finds_out_alone() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    let script = Script::default();
    let node = unclear(&blob, &first, &second, &script).await;
    script.turn(Turn::Wait);
    let begun = Instant::now();
    node.whole().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(second.asked_once(), 0..8 * MIB);
}

#[tokio::test]
async fn who_broke_it_elsewhere_is_likely_to_have_broken_it_here() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    let script = Script::default();
    first.always(Manner { stall_at: Some(3 * MIB), wrong_byte: Some(MIB), ..Manner::default() });
    script.turn(FETCH_ALL);
    let node = in_cluster(&blob, &[&first, &second], &script);
    tokio::join!(reads_wrong_bytes(&node), async {
        told(&script, &Told::Arrived(3 * MIB)).await;
        script.broken(&[&name(&first)]);
        script.turn(Turn::Peer(peer(1, &blob, Habit::default())));
    });
    assert_eq!(broke(&script), [], "nobody is told what nobody knows");
    let from = peer(2, &blob, Habit::default());
    script.turn(Turn::Peer(from.clone()));
    node.whole().await.unwrap();
    assert_eq!((first.asked().len(), second.asked().len()), (1, 0));
    assert_eq!(opened_once(&from), 0..u64::MAX, "it needn't be alone");
}

#[tokio::test]
async fn what_comes_from_who_broke_it_elsewhere_is_verified_first() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.then(Manner { wrong_byte: Some(3), ..Manner::default() });
    script.broken(&[&name(&upstream)]);
    script.turn(FETCH_ALL);
    let node = in_cluster(&blob, &[&upstream], &script);
    node.whole().await.expect("nothing wrong went out, so it was fetched once more");
    assert_eq!(upstream.asked().len(), 2);
}

#[tokio::test]
async fn a_suspect_s_bytes_are_not_shared_before_they_are_proven() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.always(Manner { stall_at: Some(6 * MIB), ..Manner::default() });
    let suspect = Habit { stall_at: Some(6 * MIB), sources: vec!["mirror:443".to_owned()], ..Habit::default() };
    script.broken(&["mirror:443"]);
    script.turn(Turn::Peer(peer(1, &blob, suspect)));
    let node = in_cluster(&blob, &[&upstream], &script);
    let first = tokio::spawn({
        let (pull, wanted) = (node.pull.clone(), node.wanted.clone());
        async move { pull.fetch(&wanted, 0).await.map(|_| ()) }
    });
    told(&script, &Told::Size(8 * MIB)).await;
    let Wanted { place, digest, .. } = &node.wanted;
    let mut shared = node.pull.share(digest, &place.registry, Access::Anonymous, 0, None).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), shared.next()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(shared.head().sources, ["mirror:443"]);
    first.abort();
}

/// One reads all of it from a slow peer, and another a little far ahead of it: what was asked of upstream, and of the peer.
async fn far_ahead_at(habit: Habit) -> (Registry, Peer) {
    let blob = blob(32);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let from = peer(1, &blob, Habit { rate: Some(4 * MIB), ..habit });
    script.turn(Turn::Peer(from.clone()));
    let node = in_cluster(&blob, &[&upstream], &script);
    let found = node.fetch(0).await.unwrap();
    let far = async {
        let begun = Instant::now();
        node.part(24 * MIB + 5..24 * MIB + 70_000).await.unwrap();
        begun.elapsed()
    };
    let (whole, far) = tokio::join!(node.check(found.read(), 0..32 * MIB), far);
    whole.unwrap();
    assert!(far < Duration::from_secs(2), "{far:?}");
    (upstream, from)
}

#[tokio::test]
async fn a_reader_far_ahead_does_not_wait_for_the_chain() {
    let (upstream, _) = far_ahead_at(Habit::default()).await;
    assert_eq!(upstream.asked_once(), 24 * MIB..25 * MIB);
}

#[tokio::test]
async fn a_peer_that_has_all_of_it_serves_readers_far_ahead() {
    let (upstream, from) = far_ahead_at(Habit { whole: true, ..Habit::default() }).await;
    assert_eq!(upstream.asked(), []);
    assert!(from.opened().contains(&(24 * MIB..25 * MIB)), "{:?}", from.opened());
}

#[tokio::test]
async fn one_that_begins_far_in_waits_for_nobody() {
    let blob = blob(24);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let node = in_cluster(&blob, &[&upstream], &script);
    node.part(20 * MIB + 5..20 * MIB + 500).await.unwrap();
    assert_eq!(upstream.asked_once().start, 20 * MIB);
}

#[tokio::test]
async fn a_transfer_is_shared_as_it_grows() {
    let blob = blob(16);
    let (upstream, alone) = (Registry::start(&blob).await, Registry::start(&blob).await);
    upstream.always(Manner { rate: Some(8 * MIB), ..Manner::default() });
    let near = Node::new(&blob, &[&upstream]);
    let script = Script::default();
    script.turn(Turn::Peer(peer_at(1, &near.pull, &near.wanted, Access::Anonymous)));
    let far = in_cluster(&blob, &[&alone], &script);
    let begun = Instant::now();
    let found = near.fetch(0).await.unwrap();
    // Its own reader leaves: that a peer reads along is reason enough to go on.
    drop(found);
    let followed = far.fetch(0).await.unwrap();
    let first = begun.elapsed();
    assert!(!near.is_stored().await, "it is shared before it is whole");
    far.check(followed.read(), 0..16 * MIB).await.unwrap();
    let last = begun.elapsed();
    near.stored().await;
    assert!(first < Duration::from_secs(1) && last < Duration::from_secs(4), "{first:?}, {last:?}");
    assert!(upstream.sent() <= 16 * MIB + 8 * MIB && alone.asked().is_empty());
    let stored = far.store.blob(&far.wanted.digest).await.unwrap();
    assert!(stored.provenance().is_public());
}

/// In a chain each would wait for all before it otherwise.
#[tokio::test]
async fn a_small_one_is_shared_as_it_grows_too() {
    let blob = blob(1).slice(..512 << 10);
    let upstream = Registry::start(&blob).await;
    upstream.always(Manner { rate: Some(512 << 10), ..Manner::default() });
    let script = Script::default();
    script.turn(FETCH_ALL);
    let near = in_cluster(&blob, &[&upstream], &script);
    let Wanted { place, digest, .. } = &near.wanted;
    let shared = async {
        let mut shared = loop {
            match near.pull.share(digest, &place.registry, Access::Anonymous, 0, None).await {
                Ok(shared) => break shared,
                // Its own reader hasn't begun it yet.
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let first = shared.next().await.unwrap().unwrap();
        assert!(!near.is_stored().await, "it goes on before all of it is here");
        first
    };
    let (found, first) = tokio::join!(near.fetch(0), shared);
    assert!(blob.starts_with(&first));
    near.check(found.unwrap().read(), 0..blob.len() as u64).await.unwrap();
}

#[tokio::test]
async fn who_shares_says_what_became_of_the_whole() {
    let blob = blob(8);
    let upstream = Registry::start(&blob).await;
    upstream.always(Manner { rate: Some(8 * MIB), wrong_byte: Some(7 * MIB), ..Manner::default() });
    let near = Node::new(&blob, &[&upstream]);
    let found = near.fetch(0).await.unwrap();
    let Wanted { place, digest, .. } = &near.wanted;
    let mut shared = near.pull.share(digest, &place.registry, Access::Anonymous, 0, None).await.unwrap();
    assert_eq!(shared.head().sources, [name(&upstream)]);
    let end = async {
        loop {
            match shared.next().await {
                Ok(Some(_)) => {}
                Ok(None) => break shared.parted().await,
                Err(Ended::Broken(sources)) => break Parted::Broken(sources),
                Err(other) => panic!("{other}"),
            }
        }
    };
    let (end, whole) = tokio::join!(end, near.check(found.read(), 0..8 * MIB));
    assert_eq!(end, Parted::Broken(vec![name(&upstream)]));
    assert_eq!(whole, Err(EndedShort));
}

#[tokio::test]
async fn a_peer_that_breaks_with_its_upstream_says_whose_fault_it_is() {
    let blob = blob(8);
    let (upstream, other) = (Registry::start(&blob).await, Registry::start(&blob).await);
    upstream.always(Manner { rate: Some(8 * MIB), wrong_byte: Some(7 * MIB), ..Manner::default() });
    let near = Node::new(&blob, &[&upstream]);
    let found = near.fetch(0).await.unwrap();
    let script = Script::default();
    script.turn(Turn::Peer(peer_at(1, &near.pull, &near.wanted, Access::Anonymous)));
    let far = in_cluster(&blob, &[&upstream, &other], &script);
    let (here, there) = tokio::join!(near.check(found.read(), 0..8 * MIB), far.whole());
    assert_eq!((here, there), (Err(EndedShort), Err(EndedShort)));
    assert_eq!(broke(&script), [(vec![name(&upstream)], None)]);
    script.turn(FETCH_ALL);
    far.whole().await.unwrap();
    assert_eq!(other.asked().len(), 1);
}

#[tokio::test]
async fn what_is_on_its_way_is_for_those_who_want_the_same() {
    let blob = blob(8);
    let upstream = Registry::start(&blob).await;
    upstream.always(Manner { stall_at: Some(6 * MIB), ..Manner::default() });
    let mut node = Node::new(&blob, &[&upstream]);
    node.wanted.grant = alice();
    let found = node.fetch(0).await.unwrap();
    let (ours, other) = ("reg.test".parse().unwrap(), "other.test".parse().unwrap());
    let digest = &node.wanted.digest;
    let share = async |registry, access| node.pull.share(digest, registry, access, 0, None).await.map(|_| ());
    assert_eq!(share(&ours, Access::Authorized).await, Ok(()));
    assert_eq!(share(&ours, Access::Anonymous).await, Err(NotShared::Absent));
    assert_eq!(share(&other, Access::Authorized).await, Err(NotShared::Absent));
    assert_eq!(share(&other, Access::Anonymous).await, Err(NotShared::Absent));
    drop(found);
}

#[tokio::test]
async fn what_is_stored_is_shared_by_where_it_came_from() {
    let blob = blob(2);
    let upstream = Registry::start(&blob).await;
    let mut node = Node::new(&blob, &[&upstream]);
    node.wanted.grant = alice();
    node.whole().await.unwrap();
    node.stored().await;
    let (ours, other) = ("reg.test".parse().unwrap(), "other.test".parse().unwrap());
    let digest = &node.wanted.digest;
    let share = async |registry, access| {
        let shared = node.pull.share(digest, registry, access, 0, None).await;
        shared.map(|shared| (shared.head().whole, shared.head().access))
    };
    assert_eq!(share(&ours, Access::Authorized).await, Ok((true, Access::Authorized)));
    assert_eq!(share(&ours, Access::Anonymous).await, Err(NotShared::Absent));
    assert_eq!(share(&other, Access::Authorized).await, Err(NotShared::Absent));
}

fn alice() -> Grant {
    Grant::Credentials(Arc::new(Credentials::password("alice", "secret").unwrap()))
}

/// A pull with credentials, of what a peer has as `habit` says; the upstream answers as `manner` says.
async fn with_credentials(habit: Habit, manner: Manner) -> (Result<(), PullError>, Registry, Node, Script) {
    let blob = blob(4);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.always(manner);
    script.turn(Turn::Peer(peer(1, &blob, habit)));
    script.then(FETCH_ALL);
    let mut node = in_cluster(&blob, &[&upstream], &script);
    node.wanted.grant = alice();
    let read = match node.fetch(0).await {
        Ok(found) => {
            node.check(found.read(), 0..4 * MIB).await.unwrap();
            Ok(())
        }
        Err(e) => Err(e),
    };
    (read, upstream, node, script)
}

#[tokio::test]
async fn a_private_blob_of_a_peer_is_used_when_its_registry_says_so() {
    let private = Habit { access: Access::Authorized, ..Habit::default() };
    let (read, upstream, node, _) = with_credentials(private, Manner::default()).await;
    read.unwrap();
    assert_eq!((upstream.heads(), upstream.sent()), (1, 0), "asked for leave, and for no byte");
    let provenance = node.store.blob(&node.wanted.digest).await.unwrap().provenance();
    let (ours, other) = ("reg.test".parse().unwrap(), "other.test".parse().unwrap());
    assert!(!provenance.is_public() && provenance.may_be_given_for(&ours) && !provenance.may_be_given_for(&other));
}

#[tokio::test]
async fn a_private_blob_of_a_peer_is_nothing_to_who_may_not_have_it() {
    let private = Habit { access: Access::Authorized, ..Habit::default() };
    let (read, upstream, node, _) = with_credentials(private, Manner { status: Some(403), ..Manner::default() }).await;
    assert!(matches!(read, Err(PullError::Denied(_))));
    assert_eq!(upstream.sent(), 0);
    assert!(!node.is_stored().await);
}

/// The same while the registry can't be asked, among nodes that keep `kept` of everybody, where the peer knows as of which
/// repository it has what it has, or doesn't.
async fn in_an_outage(grant: Grant, kept: Option<Right>, knows: bool) -> (Result<(), PullError>, Node, Script) {
    let blob = blob(4);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    upstream.always(Manner { status: Some(503), ..Manner::default() });
    script.turn(Turn::Peer(peer(1, &blob, Habit { access: Access::Authorized, ..Habit::default() })));
    script.then(FETCH_ALL);
    if let Some(right) = kept {
        script.keeps(right);
    }
    if knows {
        script.knowing(node(1));
    }
    let mut node = in_cluster(&blob, &[&upstream], &script);
    node.wanted.grant = grant;
    let read = match node.fetch(0).await {
        Ok(found) => {
            node.check(found.read(), 0..4 * MIB).await.unwrap();
            Ok(())
        }
        Err(e) => Err(e),
    };
    (read, node, script)
}

#[tokio::test]
async fn in_an_outage_a_private_blob_is_for_who_opened_its_repository_through_another_node() {
    let (read, node, _) = in_an_outage(alice(), Some(Right::Opened), true).await;
    read.unwrap();
    node.stored().await;
    node.whole().await.unwrap();
    for (kept, knows) in [(None, true), (Some(Right::Refused), true), (Some(Right::Opened), false)] {
        let (read, node, _) = in_an_outage(alice(), kept, knows).await;
        assert!(matches!(read, Err(PullError::NoAnswer(_))), "{kept:?}, known there: {knows}: {read:?}");
        assert!(!node.is_stored().await, "{kept:?}, known there: {knows}");
    }
    // Who shows nothing is asked for credentials, though nobody here has ever heard of the repository.
    let (read, ..) = in_an_outage(Grant::None, Some(Right::Opened), true).await;
    assert!(matches!(read, Err(PullError::Unauthenticated(_))), "{read:?}");
    let (read, ..) = in_an_outage(Grant::Anonymous, Some(Right::Opened), true).await;
    assert!(matches!(read, Err(PullError::NoAnswer(_))), "{read:?}");
}

#[tokio::test]
async fn who_gives_a_blob_on_knows_of_which_repository_it_is() {
    let (read, node, _) = in_an_outage(alice(), Some(Right::Opened), true).await;
    read.unwrap();
    node.stored().await;
    let Place { registry, repository } = node.wanted.place.clone();
    let of = BlobOf { registry, repository, digest: node.wanted.digest };
    assert!(node.pull.knows(&of).await);
    assert!(!node.pull.knows(&BlobOf { repository: "acme/other".parse().unwrap(), ..of.clone() }).await);
    assert!(!node.pull.knows(&BlobOf { registry: "other.test".parse().unwrap(), ..of }).await);
}

#[tokio::test]
async fn what_the_registry_says_of_credentials_is_told() {
    let private = || Habit { access: Access::Authorized, ..Habit::default() };
    let (_, _, _node, script) = with_credentials(private(), Manner { status: Some(403), ..Manner::default() }).await;
    told(&script, &Told::Right(Right::Refused)).await;
}

#[tokio::test]
async fn nor_is_what_another_registry_gave_under_authorization() {
    let elsewhere = Habit { access: Access::Authorized, registry: "other.test", ..Habit::default() };
    let (read, upstream, _, script) = with_credentials(elsewhere, Manner::default()).await;
    read.unwrap();
    assert_eq!(upstream.asked_once().end, 4 * MIB, "its own registry delivers it in full");
    assert_eq!(failed(&script), [Failed::Peer(node(1))]);
}

#[tokio::test]
async fn what_is_public_anywhere_stays_public() {
    let public = Habit { registry: "other.test", whole: true, ..Habit::default() };
    let (read, upstream, node, _) = with_credentials(public, Manner::default()).await;
    read.unwrap();
    assert_eq!(upstream.asked().len(), 0);
    let provenance = node.store.blob(&node.wanted.digest).await.unwrap().provenance();
    assert!(provenance.is_public(), "{provenance:?}");
    assert!(
        provenance.iter().any(|given| given == (&"other.test".parse().unwrap(), Access::Anonymous)),
        "{provenance:?}"
    );
}

/// Until a follow was told so.
async fn told(script: &Script, what: &Told) {
    let waiting = async {
        while !script.told().contains(what) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what:?}: {:?}", script.told()));
}

#[tokio::test]
async fn nodes_in_a_chain_have_one_copy_among_them() {
    let blob = blob(16);
    let upstream = Registry::start(&blob).await;
    upstream.always(Manner { rate: Some(8 * MIB), ..Manner::default() });
    let mut nodes = vec![Node::new(&blob, &[&upstream])];
    let mut parents: Vec<Peer> = Vec::new();
    for number in 1..5 {
        let last = &nodes[nodes.len() - 1];
        let parent = peer_at(number, &last.pull, &last.wanted, Access::Anonymous);
        let script = Script::default();
        script.turn(Turn::Peer(parent.clone()));
        parents.push(parent);
        nodes.push(in_cluster(&blob, &[&upstream], &script));
    }
    let begun = Instant::now();
    futures_util::future::join_all(nodes.iter().map(Node::whole)).await.into_iter().for_each(Result::unwrap);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(upstream.sent(), 16 * MIB);
    assert!(parents.iter().all(|parent| parent.opened().first() == Some(&(0..u64::MAX))));
}
