//! What others say, and what a node says to them: of upstreams that sent somebody wrong bytes, and of what may be here.

use std::time::Instant;

use super::peers::{FETCH_ALL, in_cluster, name};
use super::*;
use crate::config;
use crate::image::Access;
use crate::peers::script::Script;
use crate::pull::NotShared;

/// containerd has other things to do: what it holds may be there all the same, and owners are not to forget it.
#[tokio::test]
async fn what_containerd_does_not_answer_for_in_time_is_not_absent() {
    let blob = blob(2);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("containerd.sock");
    let client = || Client::new(&config::Containerd { socket: socket.clone(), ..config::Containerd::default() });
    let share = async |client| {
        let node = Node::beside(&blob, &[], "", None, Some(Arc::new(client)));
        let ours = "reg.test".parse().unwrap();
        node.pull.share(&node.wanted.digest, &ours, Access::Anonymous, 0, None).await.map(drop)
    };
    assert_eq!(share(client().unwrap()).await, Err(NotShared::Absent), "there is no containerd");
    let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(share(client().unwrap()).await, Err(NotShared::Unanswered));
}

/// Of another blob: others say that the first upstream sent them wrong bytes.
#[tokio::test]
async fn what_comes_from_where_others_got_wrong_bytes_is_verified_first() {
    let blob = blob(8);
    let (liar, other) = (Registry::start(&blob).await, Registry::start(&blob).await);
    liar.always(Manner { wrong_byte: Some(7 * MIB), ..Manner::default() });
    let script = Script::default();
    script.turn(FETCH_ALL);
    script.suspect(&name(&liar));
    let node = in_cluster(&blob, &[&liar, &other], &script);
    heard_of(&node, &liar).await;
    node.whole().await.unwrap();
    assert_eq!((liar.asked().len(), other.asked().len()), (1, 1));
}

/// Their word keeps nobody from a blob that takes longer than a reply may wait.
#[tokio::test]
async fn what_others_say_of_an_upstream_costs_a_while_at_most() {
    let blob = blob(8);
    let upstream = Registry::start(&blob).await;
    upstream.always(Manner { rate: Some(2 * MIB), ..Manner::default() });
    let script = Script::default();
    script.turn(FETCH_ALL);
    script.suspect(&name(&upstream));
    let peers = Peers::scripted(&script);
    let node = Node::among(&blob, &[&upstream], "reply_deadline = \"2s\"", Some(peers));
    heard_of(&node, &upstream).await;
    let begun = Instant::now();
    let found = node.fetch(0).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    node.check(found.read(), 0..8 * MIB).await.unwrap();
}

#[tokio::test]
async fn others_are_told_of_an_upstream_that_sends_wrong_bytes() {
    let blob = blob(8);
    let (liar, other) = (Registry::start(&blob).await, Registry::start(&blob).await);
    liar.always(Manner { wrong_byte: Some(7 * MIB), ..Manner::default() });
    let script = Script::default();
    script.turn(FETCH_ALL);
    let node = in_cluster(&blob, &[&liar, &other], &script);
    node.whole().await.unwrap_err();
    let told = async {
        while !script.is_suspect(&name(&liar)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    assert!(!script.is_suspect(&name(&other)));
}

/// Until a node has heard what others say of an upstream, as it does when a pull begins.
async fn heard_of(node: &Node, upstream: &Registry) {
    node.pull.0.ask_about_upstreams(&node.wanted.place.registry);
    let heard = async {
        while !node.pull.0.blame.is_said_to_break(&name(upstream)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap();
}
