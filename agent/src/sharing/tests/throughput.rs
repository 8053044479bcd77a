//! How fast one stream is, from a source in memory to checked bytes, against raw TLS over TCP:
//! `cargo test --release -p larder sharing::tests::throughput -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::node::{Node, World};
use crate::cluster::directory::{Holding, Shelf};
use crate::cluster::{Bucket, Member, Ring};
use crate::image::{Access, Digest, MediaType, Registry};
use crate::peers::{BlobOf, Head, Parted, Trace, Turn, messages};
use crate::pull::{Ended, NotShared};
use crate::sharing::{Callers, Reading, Sharing, Source};
use crate::wire::tests::throughput::{TOTAL, raw};
use crate::wire::{PeerListener, WireMetrics};

/// The same megabyte again and again, as the store gives it.
#[derive(Clone)]
struct Endless(Bytes);

struct Left {
    head: Head,
    piece: Bytes,
    left: u64,
}

impl Source for Endless {
    type Reading = Left;

    async fn share(
        &self,
        _: &Digest,
        of: &Registry,
        access: Access,
        _: u64,
        _: Option<u64>,
    ) -> Result<Left, NotShared> {
        let (media_type, registry, sources) = (MediaType::octet_stream(), of.clone(), Vec::new());
        let head = Head { size: TOTAL, media_type, registry, access, whole: true, sources };
        Ok(Left { head, piece: self.0.clone(), left: TOTAL })
    }

    async fn knows(&self, _: &BlobOf) -> bool {
        false
    }
}

impl Reading for Left {
    fn head(&self) -> &Head {
        &self.head
    }

    fn frontier(&self) -> u64 {
        TOTAL
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= self.piece.len() as u64;
        Ok(Some(self.piece.clone()))
    }

    async fn parted(&mut self) -> Parted {
        Parted::Held
    }
}

async fn through_peers(world: &World) -> f64 {
    let [sender, reader] = &world.nodes[..] else { panic!("two nodes") };
    let listener = PeerListener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let member = Member { addr: listener.local_addr().unwrap(), ..sender.member() };
    let stop = CancellationToken::new();
    let source = Endless(Bytes::from(vec![7; 1 << 20]));
    let sharing = Sharing::new(sender.peers.clone(), source, Callers::Named, stop.clone());
    tokio::spawn(listener.serve(sharing, Arc::clone(&sender.identity), WireMetrics::default(), stop.clone()));
    reader.believes(Ring::new(reader.node, [member, reader.member()]));
    let digest = Digest::of(b"endless");
    let added = vec![Holding { digest, registries: Vec::new() }];
    let bucket = Bucket::of(&digest);
    let shelf = Shelf { bucket, generation: 1, hash: 0, all: true, added, dropped: Vec::new() };
    for node in &world.nodes {
        node.peers.directory().announce(sender.node, messages::shelves_of(std::slice::from_ref(&shelf))).unwrap();
    }
    let mut follow = reader.peers.follow(Node::sought(digest), None, 0, &Trace::new());
    let peer = loop {
        match follow.turn() {
            Turn::Peer(peer) => break peer,
            _ => follow.changed().await,
        }
    };
    let mut stream = peer.open(0, None).await.unwrap();
    let (mut got, began) = (0, Instant::now());
    while let Some(bytes) = stream.frame().await.unwrap() {
        got += bytes.len() as u64;
    }
    assert_eq!(got, TOTAL);
    stop.cancel();
    TOTAL as f64 / began.elapsed().as_secs_f64() / 1e6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn one_stream_against_raw_tls() {
    for _ in 0..3 {
        let world = World::new(2);
        let raw = raw(&world.nodes[0].identity, &world.nodes[1].identity).await;
        let ours = through_peers(&world).await;
        println!("raw TLS {raw:.0} MB/s, a stream {ours:.0} MB/s: {:.2}", ours / raw);
    }
}
