//! Real sockets, real datagrams, real time.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::wire::{Identity, WireMetrics};

/// Files of an authority.
pub(super) fn authority() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
    dir
}

/// What a node's membership is made of, and where others reach it.
pub(super) fn parts(authority: &Path, dir: &Path, seeds: &[SocketAddr]) -> (GossipParts, SocketAddr) {
    let config = format!(
        "ca = '{0}/ca.pem'\nkey = '{0}/key.pem'\nzone = 'z1'\nlisten = '127.0.0.1:7441'\nseeds = {1:?}",
        authority.display(),
        seeds.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    let config: config::Peers = toml::from_str(&config).unwrap();
    let identity = Identity::open(&config, dir).unwrap();
    let node = identity.node();
    let datagrams = Datagrams::bind("127.0.0.1:0".parse().unwrap(), identity, WireMetrics::default()).unwrap();
    let addr = datagrams.local_addr().unwrap();
    let (metrics, tasks, stop) = (GossipMetrics::default(), TaskTracker::new(), CancellationToken::new());
    (GossipParts { node, config, datagrams, dir: dir.to_owned(), metrics, tasks, stop }, addr)
}

/// A node that runs.
struct Node {
    gossip: Gossip,
    node: NodeId,
    addr: SocketAddr,
    metrics: GossipMetrics,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Node {
    fn start(authority: &Path, dir: &Path, seeds: &[SocketAddr]) -> Self {
        let (parts, addr) = parts(authority, dir, seeds);
        let (node, metrics) = (parts.node, parts.metrics.clone());
        let (tasks, stop) = (parts.tasks.clone(), parts.stop.clone());
        let gossip = Gossip::start(parts);
        Self { gossip, node, addr, metrics, tasks, stop }
    }

    /// Waits until the ring is as it should be.
    async fn until(&self, what: &str, holds: impl Fn(&Ring) -> bool) -> Arc<Ring> {
        let mut ring = self.gossip.ring();
        let found = timeout(Duration::from_secs(20), ring.wait_for(|ring| holds(ring))).await;
        found.unwrap_or_else(|_| panic!("{}: never {what}", self.node)).unwrap().clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        timeout(Duration::from_secs(1), self.tasks.wait()).await.expect("it leaves in time");
    }
}

fn settled(count: usize) -> impl Fn(&Ring) -> bool {
    move |ring| ring.members().iter().filter(|member| member.settled).count() == count && ring.members().len() == count
}

#[tokio::test]
async fn nodes_find_each_other_and_again_without_a_seed_and_elsewhere() {
    let authority = authority();
    let dirs: Vec<TempDir> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = Node::start(authority.path(), dirs[0].path(), &[]);
    let seeds = [first.addr];
    let second = Node::start(authority.path(), dirs[1].path(), &seeds);
    let third = Node::start(authority.path(), dirs[2].path(), &seeds);
    // An outsider shouts at them, and a node of another cluster seeks to join.
    let outside = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    outside.send_to(&[0; 1200], first.addr).unwrap();
    let other_authority = self::authority();
    let stranger = Node::start(other_authority.path(), dirs[3].path(), &seeds);

    let ring = first.until("three settled", settled(3)).await;
    for node in [&second, &third] {
        assert_eq!(node.until("three settled", settled(3)).await.changed(&ring), vec![]);
    }
    let seen = ring.member(second.node).unwrap();
    assert_eq!((seen.addr, seen.zone.as_str()), (second.addr, "z1"));
    assert!(stranger.gossip.ring().borrow().members().iter().all(|member| member.node == stranger.node));
    stranger.stop().await;

    // Who leaves is gone at once.
    let (left, its_addr) = (second.node, second.addr);
    second.stop().await;
    first.until("two", |ring| ring.member(left).is_none()).await;
    third.until("two", |ring| ring.member(left).is_none()).await;

    // It comes back at another port and knows no seed: its disk knows the others.
    let second = Node::start(authority.path(), dirs[1].path(), &[]);
    assert_eq!(second.node, left);
    assert_ne!(second.addr, its_addr);
    let addr = second.addr;
    first.until("the second is back", |ring| ring.member(left).is_some_and(|member| member.addr == addr)).await;
    // The others' view is its own at once: it needn't wait until it has settled itself.
    let shown = second.until("the others are settled", settled_others(left)).await;
    assert!(!shown.member(left).unwrap().settled);

    for node in [first, second, third] {
        node.stop().await;
    }
}

fn settled_others(me: NodeId) -> impl Fn(&Ring) -> bool {
    move |ring| ring.members().len() == 3 && ring.members().iter().all(|member| member.node == me || member.settled)
}

#[tokio::test]
async fn who_leaves_is_no_loss_and_who_dies_is_one() {
    let authority = authority();
    let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = Node::start(authority.path(), dirs[0].path(), &[]);
    let second = Node::start(authority.path(), dirs[1].path(), &[first.addr]);
    // It ends with its runtime, without a word.
    let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let third = {
        let _inside = elsewhere.enter();
        Node::start(authority.path(), dirs[2].path(), &[first.addr])
    };
    first.until("three settled", settled(3)).await;
    third.until("three settled", settled(3)).await;

    second.stop().await;
    first.until("two", |ring| ring.members().len() == 2).await;
    assert_eq!(first.metrics.members("missing"), Some(0));
    elsewhere.shutdown_background();
    first.until("one", |ring| ring.members().len() == 1).await;
    assert_eq!(first.metrics.members("missing"), Some(1));
    first.stop().await;
}

#[tokio::test]
async fn who_is_alone_owns_everything_and_leaves_in_time() {
    let (authority, dir) = (authority(), tempfile::tempdir().unwrap());
    let nobody = "127.0.0.1:9".parse().unwrap();
    let node = Node::start(authority.path(), dir.path(), &[nobody]);
    let ring = node.until("settled", settled(1)).await;
    assert_eq!(ring.owners_of(&crate::image::Digest::of(b"")).first, Some(node.node));
    node.gossip.suspect(node.node);
    node.stop().await;
}
