//! A member that isn't ours: it sends what a test wants it to.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use larder_proto::peers::{Head, ReadReply, read_reply};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;

use super::node::{Node, PATIENCE, World};
use crate::cluster::chain::{BEAT_EVERY, Beat, Hop};
use crate::cluster::directory::{Holding, Shelf};
use crate::cluster::{Bucket, Member, Ring};
use crate::image::{Digest, NodeId};
use crate::peers::frames::framed;
use crate::peers::{Follow, Peer, Trace, Turn, messages};
use crate::wire::{Identity, PeerListener, WireMetrics};

pub(super) struct Impostor {
    pub(super) node: NodeId,
    /// How many requests it has had.
    asked: Arc<AtomicUsize>,
    _stop: DropGuard,
}

/// What a whole holder says before the bytes.
pub(super) fn head(size: usize) -> Head {
    Head {
        size: size as u64,
        media_type: "a/b".to_owned(),
        registry: "docker.io".to_owned(),
        access: 1,
        whole: true,
        sources: Vec::new(),
    }
}

impl Impostor {
    /// Takes its place among the members. It owns nothing, has told all owners that it has the blob, and answers every
    /// request with these replies.
    pub(super) fn start(world: &World, digest: Digest, replies: Vec<u8>) -> Self {
        Self::start_pausing(world, digest, [replies, Vec::new()], Duration::ZERO)
    }

    /// The same, with a pause between the first replies and the others.
    pub(super) fn start_pausing(world: &World, digest: Digest, replies: [Vec<u8>; 2], pause: Duration) -> Self {
        let replies = replies.map(Bytes::from);
        Self::serve(world, &[digest], move |_| {
            let [first, others] = replies.clone();
            let others = async move {
                tokio::time::sleep(pause).await;
                others
            };
            stream::once(std::future::ready(first)).chain(stream::once(others)).boxed()
        })
    }

    /// One that has these blobs, of so many bytes each, says so and that it lives, and sends none of them.
    pub(super) fn start_giving_nothing(world: &World, digests: &[Digest], size: usize) -> Self {
        Self::serve(world, digests, move |me| {
            let hop = Hop { node: me, ticket: None, frontier: size as u64, rate: 0 };
            let beat = read_reply::Part::Beat(messages::beat_of(&Beat { path: vec![hop] }));
            let first = framed(&ReadReply { part: Some(read_reply::Part::Head(head(size))) });
            let beat = framed(&ReadReply { part: Some(beat) });
            let beats = stream::unfold(beat, |beat| async move {
                tokio::time::sleep(BEAT_EVERY).await;
                Some((beat.clone(), beat))
            });
            stream::once(std::future::ready(first)).chain(beats).boxed()
        })
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn serve(
        world: &World,
        digests: &[Digest],
        replies: impl Fn(NodeId) -> BoxStream<'static, Bytes> + Clone + Send + 'static,
    ) -> Self {
        let identity = Identity::open(&world.config(), &world.path().join("impostor")).unwrap();
        let listener = PeerListener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let (node, addr) = (identity.node(), listener.local_addr().unwrap());
        let asked = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&asked);
        let service = tower::service_fn(move |_: Request<Incoming>| {
            count.fetch_add(1, Ordering::Relaxed);
            let frames = replies(node).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
            let body = Body::new(StreamBody::new(frames));
            let response = Response::builder().header("content-type", "application/grpc").body(body);
            async move { Ok::<_, Infallible>(response.unwrap()) }
        });
        let stop = CancellationToken::new();
        tokio::spawn(listener.serve(service, Arc::clone(&identity), WireMetrics::default(), stop.clone()));
        world.knows(&Member { node, addr, settled: false, ..world.nodes[0].member() });
        // No two of them are in one bucket.
        let shelves: Vec<Shelf> = digests
            .iter()
            .map(|&digest| {
                let added = vec![Holding { digest, registries: Vec::new() }];
                let bucket = Bucket::of(&digest);
                Shelf { bucket, generation: 1, hash: 0, all: true, added, dropped: Vec::new() }
            })
            .collect();
        for owner in &world.nodes {
            owner.peers.directory().announce(node, messages::shelves_of(&shelves)).unwrap();
        }
        Self { node, asked, _stop: stop.drop_guard() }
    }
}

impl World {
    /// One more member.
    fn knows(&self, member: &Member) {
        for node in &self.nodes {
            let members = self.nodes.iter().map(Node::member).chain([member.clone()]);
            node.believes(Ring::new(node.node, members));
        }
    }

    /// Whom the first node is to read a blob from, which others are known to hold; and the turn that says so.
    pub(super) async fn peer_for(&self, digest: Digest) -> (Peer, Follow) {
        let asking = async {
            loop {
                let mut follow = self.nodes[0].peers.follow(Node::sought(digest), None, 0, &Trace::new());
                while matches!(follow.turn(), Turn::Wait) {
                    follow.changed().await;
                }
                if let Turn::Peer(peer) = follow.turn() {
                    return (peer, follow);
                }
                // Its owners were late: a busy machine may take longer than they are given.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, asking).await.unwrap()
    }
}
