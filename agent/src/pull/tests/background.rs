//! What nobody waits for: an upstream that has had enough isn't asked for it.

use super::neighbour::{Habit, peer};
use super::*;
use crate::config;
use crate::peers::script::{Script, Told};
use crate::peers::{Failed, Turn};
use crate::pull::Pace;

/// Has the only upstream say "too many requests".
async fn tire(node: &Node, upstream: &Registry) {
    upstream.then(Manner { status: Some(429), ..Manner::default() });
    assert!(matches!(node.fetch(0).await, Err(PullError::NoAnswer(_))));
    assert_eq!(upstream.asked().len(), 1);
}

async fn fetch(node: &Node) -> Result<Found, PullError> {
    node.pull.fetch_in_background(&node.wanted, &Arc::new(Pace::new(config::Bytes(1 << 30)))).await
}

#[tokio::test]
async fn one_that_rests_is_left_to_those_who_wait() {
    let blob = blob(8);
    let upstream = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&upstream]);
    tire(&node, &upstream).await;
    assert!(matches!(fetch(&node).await, Err(PullError::Spared)));
    assert_eq!(upstream.asked().len(), 1);
    node.whole().await.unwrap();
}

#[tokio::test]
async fn another_is_asked_in_its_place() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    let node = Node::new(&blob, &[&first, &second]);
    first.then(Manner { status: Some(429), ..Manner::default() });
    second.then(Manner { cut_at: Some(4 * MIB), ..Manner::default() });
    let found = fetch(&node).await.unwrap();
    node.check(found.read(), 0..8 * MIB).await.unwrap();
    assert_eq!(first.asked().len(), 1, "nor where the other breaks off");
    assert!(second.asked().len() > 1);
}

#[tokio::test]
async fn peers_give_it_all_the_same() {
    let blob = blob(8);
    let (upstream, script) = (Registry::start(&blob).await, Script::default());
    let node = Node::among(&blob, &[&upstream], "", Some(Peers::scripted(&script)));
    script.turn(Turn::Upstream { upto: u64::MAX });
    tire(&node, &upstream).await;
    script.then(Turn::Peer(peer(1, &blob, Habit::default())));
    let found = fetch(&node).await.unwrap();
    node.check(found.read(), 0..8 * MIB).await.unwrap();
    assert_eq!(upstream.asked().len(), 1);
    assert!(script.told().contains(&Told::Failed(Failed::Unreachable)), "who waits elsewhere may fetch it");
}

/// Waits until so many read the transfer under way.
async fn read_by(node: &Node, readers: usize) {
    while node.pull.under_way().first().is_none_or(|transfer| transfer.readers != readers) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_joins_and_waits_has_it_asked() {
    for leaves in [false, true] {
        let blob = blob(8);
        let (upstream, script) = (Registry::start(&blob).await, Script::default());
        let node = Node::among(&blob, &[&upstream], "", Some(Peers::scripted(&script)));
        script.turn(Turn::Upstream { upto: u64::MAX });
        tire(&node, &upstream).await;
        script.turn(Turn::Wait);
        let (pull, wanted) = (node.pull.clone(), node.wanted.clone());
        let pace = Arc::new(Pace::new(config::Bytes(1 << 30)));
        let patient = tokio::spawn(async move { pull.fetch_in_background(&wanted, &pace).await.map(|_| ()) });
        read_by(&node, 1).await;
        let turn = async {
            read_by(&node, 2).await;
            if leaves {
                patient.abort();
                read_by(&node, 1).await;
            }
            script.turn(Turn::Upstream { upto: u64::MAX });
        };
        let (waiting, ()) = tokio::join!(node.whole(), turn);
        waiting.unwrap();
    }
}
