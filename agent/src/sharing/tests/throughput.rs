//! How fast one stream is, from a source in memory to checked bytes, against raw TLS over TCP:
//! `cargo test --release -p larder sharing::tests::throughput -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::node::{Node, World};
use crate::cluster::directory::{Holding, Shelf};
use crate::cluster::{Bucket, Member, Ring};
use crate::image::{Access, Digest, MediaType, Registry};
use crate::peers::{Head, Parted, Trace, Turn, messages};
use crate::pull::{Ended, NotShared};
use crate::sharing::{Callers, Reading, Sharing, Source};
use crate::wire::{Identity, PeerListener, WireMetrics};

const TOTAL: u64 = 4 << 30;
const PIECE: usize = 256 << 10;

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

async fn raw(a: &Identity, b: &Identity) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(b.server_config());
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let piece = vec![7; PIECE];
        for _ in 0..TOTAL / PIECE as u64 {
            stream.write_all(&piece).await.unwrap();
        }
        stream.shutdown().await.unwrap();
    });
    let connector = TlsConnector::from(a.client_config(b.node()).unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(ServerName::from(address.ip()), stream).await.unwrap();
    let (mut buffer, mut got, began) = (vec![0; PIECE], 0, Instant::now());
    while got < TOTAL {
        got += stream.read(&mut buffer).await.unwrap() as u64;
    }
    TOTAL as f64 / began.elapsed().as_secs_f64() / 1e6
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
