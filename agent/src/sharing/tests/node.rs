//! Nodes of a cluster whose members are told who they are.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bytes::Shelf;
use crate::cluster::directory::TagKey;
use crate::cluster::{Member, Ring};
use crate::config;
use crate::image::{Access, Digest, NodeId, Registry};
use crate::peers::{Credential, Failed, Grants, Parts, Peer, PeerMetrics, Peers, Sought, Trace, Turn};
use crate::sharing::{Callers, Sharing};
use crate::store::{Options, Store};
use crate::wire::{Channels, ClusterCa, Identity, PeerListener, WireMetrics};

/// Longer than anything takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct World {
    dir: TempDir,
    pub(super) nodes: Vec<Node>,
}

pub(super) struct Node {
    pub(super) node: NodeId,
    pub(super) peers: Peers,
    pub(super) shelf: Shelf,
    pub(super) store: Store,
    pub(super) identity: Arc<Identity>,
    address: SocketAddr,
    ring: watch::Sender<Arc<Ring>>,
    stop: CancellationToken,
    /// Bytes that it fetched from upstream.
    pub(super) fetched: AtomicU64,
    /// What it fetched, part by part.
    pub(super) parts: Mutex<Vec<Range<u64>>>,
}

impl World {
    pub(super) fn new(count: usize) -> Self {
        Self::with(count, |_| {})
    }

    pub(super) fn with(count: usize, configure: impl Fn(&mut config::Peers)) -> Self {
        Self::of(count, configure, config::Private::default().remember.0)
    }

    /// Who may pull what is remembered for so long.
    pub(super) fn remembering(count: usize, remember: Duration) -> Self {
        Self::of(count, |_| {}, remember)
    }

    fn of(count: usize, configure: impl Fn(&mut config::Peers), remember: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::make().unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.certificates()).unwrap();
        std::fs::write(dir.path().join("ca.key"), ca.keys()).unwrap();
        let mut world = Self { dir, nodes: Vec::new() };
        let mut config = world.config();
        configure(&mut config);
        world.nodes = (0..count).map(|n| Node::start(&config, &world.path().join(n.to_string()), remember)).collect();
        world.all_are_up();
        world
    }

    /// Of a node that issues its own certificate.
    pub(super) fn config(&self) -> config::Peers {
        let mut config = config::Peers::default();
        config.ca = Some(self.path().join("ca.pem"));
        config.key = Some(self.path().join("ca.key"));
        config
    }

    pub(super) fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    fn all_are_up(&self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.are_up(&all);
    }

    /// Every node believes that these are the members.
    pub(super) fn are_up(&self, up: &[usize]) {
        let members: Vec<Member> = up.iter().map(|n| self.nodes[*n].member()).collect();
        for node in &self.nodes {
            node.ring.send_replace(Arc::new(Ring::new(node.node, members.clone())));
        }
    }

    /// Returns when all nodes that live answer as the owners that they take themselves for.
    pub(super) async fn agrees(&self) {
        let agree = async {
            while self.nodes.iter().any(|node| !node.stop.is_cancelled() && !node.peers.goes_by_its_ring()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, agree).await.unwrap();
    }

    pub(super) fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.nodes[0].ring.borrow())
    }

    /// Where the owners of a blob stand in the list.
    pub(super) fn owners(&self, digest: &Digest) -> Vec<usize> {
        let owners = self.nodes[0].ring.borrow().owners_of(digest);
        owners.iter().map(|owner| self.nodes.iter().position(|node| node.node == owner).unwrap()).collect()
    }

    /// Where the owners of a tag stand in the list.
    pub(super) fn owners_of_tag(&self, key: &TagKey) -> Vec<usize> {
        let owners = self.nodes[0].ring.borrow().owners(key.bucket());
        owners.iter().map(|owner| self.nodes.iter().position(|node| node.node == owner).unwrap()).collect()
    }

    /// One more node, which nobody knows yet.
    pub(super) fn start_another(&mut self) {
        let dir = self.path().join(self.nodes.len().to_string());
        self.nodes.push(Node::start(&self.config(), &dir, config::Private::default().remember.0));
    }

    /// Some content whose owners are none of `not`.
    pub(super) fn content_owned_by_others(&self, size: usize, not: &[usize]) -> Vec<u8> {
        (0..)
            .map(|seed| content(seed, size))
            .find(|bytes| {
                let owners = self.owners(&Digest::of(bytes));
                not.iter().all(|n| !owners.contains(n))
            })
            .unwrap()
    }

    pub(super) fn fetched(&self) -> u64 {
        self.nodes.iter().map(|node| node.fetched.load(Ordering::Relaxed)).sum()
    }
}

impl Node {
    fn start(config: &config::Peers, dir: &std::path::Path, remember: Duration) -> Self {
        let identity = Identity::open(config, dir).unwrap();
        let (metrics, stop, tasks) = (WireMetrics::default(), CancellationToken::new(), TaskTracker::new());
        let listener = PeerListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let channels = Channels::new(Arc::clone(&identity), metrics.clone());
        let options = Options {
            dir: dir.join("cache"),
            max_bytes: None,
            max_disk_percent: config::Percent::new(100).unwrap(),
            sync_after: Duration::ZERO,
        };
        let store = Store::open(options).unwrap();
        let ring = watch::Sender::new(Arc::new(Ring::empty(identity.node())));
        let peers = Peers::new(Parts {
            config,
            grants: Grants::shared(store.clone(), config::Health::default()),
            remember,
            metrics: PeerMetrics::default(),
            identity: &identity,
            ring: ring.subscribe(),
            gossip: None,
            channels,
            store: store.clone(),
            inventory: None,
            tasks,
            stop: stop.clone(),
        });
        let shelf = Shelf::default();
        let sharing = Sharing::new(peers.clone(), shelf.clone(), Callers::Named, stop.clone());
        let sharing = sharing.telling(super::images::told(identity.node()));
        tokio::spawn(listener.serve(sharing, Arc::clone(&identity), metrics, stop.clone()));
        let (fetched, parts) = Default::default();
        let node = identity.node();
        Self { node, peers, shelf, store, identity, address, ring, stop, fetched, parts }
    }

    pub(super) fn member(&self) -> Member {
        Member { node: self.node, addr: self.address, zone: self.peers.zone().clone(), start: 1, settled: true }
    }

    pub(super) fn believes(&self, ring: Ring) {
        self.ring.send_replace(Arc::new(ring));
    }

    /// It dies: nothing more comes from it, and connections to it break.
    pub(super) fn kill(&self) {
        self.stop.cancel();
    }

    pub(super) fn sought(digest: Digest) -> Sought {
        let (access, credential) = (Access::Anonymous, Credential::Anonymous);
        Sought { digest, registry: "docker.io".parse::<Registry>().unwrap(), access, credential }
    }

    /// Gets a blob as the cluster says, by way of an upstream that has so much of it.
    pub(super) async fn pull(&self, content: &[u8], upstream: watch::Receiver<u64>) -> Vec<u8> {
        timeout(PATIENCE, self.obey(content, upstream)).await.unwrap()
    }

    async fn obey(&self, content: &[u8], mut upstream: watch::Receiver<u64>) -> Vec<u8> {
        let (digest, size) = (Digest::of(content), content.len() as u64);
        let here = self.shelf.begin(digest, size);
        let mut follow = self.peers.follow(Self::sought(digest), Some(size), 0, &Trace::new());
        while here.frontier() < size {
            match follow.turn() {
                Turn::Wait => follow.changed().await,
                Turn::Upstream { upto } if upto <= here.frontier() => follow.changed().await,
                Turn::Upstream { upto } => {
                    let from = here.frontier();
                    tokio::select! {
                        there = upstream.wait_for(|there| *there > from) => {
                            let to = upto.min(*there.unwrap()).min(from + (256 << 10)).min(size);
                            self.fetched.fetch_add(to - from, Ordering::Relaxed);
                            self.parts.lock().unwrap().push(from..to);
                            follow.arrived(here.add(&content[from as usize..to as usize]));
                        }
                        () = follow.changed() => {}
                    }
                }
                Turn::Peer(peer) => self.read(&peer, &here, &mut follow).await,
            }
        }
        let all = here.content.lock().unwrap().clone();
        assert_eq!(Digest::of(&all), digest);
        here.is_whole();
        follow.is_whole();
        all
    }

    async fn read(&self, peer: &Peer, here: &super::bytes::Arriving, follow: &mut crate::peers::Follow) {
        let is_other = |follow: &crate::peers::Follow| !matches!(follow.turn(), Turn::Peer(now) if now == *peer);
        let mut stream = tokio::select! {
            opened = peer.open(here.frontier(), None) => match opened {
                Ok(stream) => stream,
                Err(_) => return follow.failed(&Failed::Peer(peer.node())),
            },
            () = follow.changed() => return,
        };
        while !is_other(follow) {
            tokio::select! {
                frame = stream.frame() => match frame {
                    Ok(Some(bytes)) => follow.arrived(here.add(&bytes)),
                    Ok(None) => return,
                    Err(_) => return follow.failed(&Failed::Peer(peer.node())),
                },
                () = follow.changed() => {}
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Bytes that don't repeat: another sequence for each seed.
pub(super) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Waits until something is so.
pub(super) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain until {what}");
}
