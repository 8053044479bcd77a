//! How fast one stream is: `cargo test --release wire::tests::throughput -- --ignored --nocapture`.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body::Frame;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// What goes through each, in bytes.
pub(crate) const TOTAL: u64 = 4 << 30;
const PIECE: usize = 256 << 10;

/// The same piece again and again.
struct Pieces {
    piece: Bytes,
    left: u64,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= self.piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(self.piece.clone()))))
    }
}

/// TLS over TCP and nothing else, in MB/s.
pub(crate) async fn raw(a: &Identity, b: &Identity) -> f64 {
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

async fn through_channels(a: &Node, b: &Arc<Identity>) -> f64 {
    let listener = PeerListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let piece = Bytes::from(vec![7; PIECE]);
    let service = tower::service_fn(move |_: Request<Incoming>| {
        let pieces = Pieces { piece: piece.clone(), left: TOTAL };
        async { Ok::<_, Infallible>(Response::new(pieces)) }
    });
    tokio::spawn(listener.serve(service, Arc::clone(b), WireMetrics::default(), stop.clone()));
    let channel = a.channels.to(b.node(), address, Purpose::Bulk);
    let request = Request::get("/").body(tonic::body::Body::empty()).unwrap();
    let mut body = channel.oneshot(request).await.unwrap().into_body();
    let (mut got, began) = (0, Instant::now());
    while got < TOTAL {
        got += body.frame().await.unwrap().unwrap().into_data().unwrap().len() as u64;
    }
    stop.cancel();
    TOTAL as f64 / began.elapsed().as_secs_f64() / 1e6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn one_stream_against_raw_tls() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.identity("b"));
    for _ in 0..3 {
        let raw = raw(&a.identity, &b).await;
        let ours = through_channels(&a, &b).await;
        println!("raw TLS {raw:.0} MB/s, a stream {ours:.0} MB/s: {:.2}", ours / raw);
    }
}
