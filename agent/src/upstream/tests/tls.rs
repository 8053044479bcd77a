//! Certificates, and HTTP/2.

use std::convert::Infallible;
use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::super::{SetupError, TlsError, Unreachable};
use super::server::{Ca, Server, answer, ok};
use super::*;

#[tokio::test]
async fn who_is_believed() {
    let ca = Ca::new();
    let server = Server::tls(&ca, |_| ok("hello")).await;
    let kind = Room::of(&server.url()).kind().await;
    assert!(matches!(kind, ErrorKind::Unreachable(Unreachable::Tls(_))), "{kind:?}");
    for (ca, insecure) in [(Some(ca.path()), false), (None, true)] {
        let room = Room::new(address::refused, &server.url(), ca, insecure);
        assert_eq!(room.bytes().await.unwrap(), b"hello");
    }
    let other = Ca::new();
    let kind = Room::new(address::refused, &server.url(), Some(other.path()), false).kind().await;
    assert!(matches!(kind, ErrorKind::Unreachable(Unreachable::Tls(_))), "{kind:?}");
    let expired = Server::tls_by(ca.expired_acceptor(), |_| ok("hello")).await;
    let kind = Room::new(address::refused, &expired.url(), Some(ca.path()), false).kind().await;
    assert!(
        matches!(&kind, ErrorKind::Unreachable(Unreachable::Tls(why)) if why.contains("expired")),
        "its authority is believed, and it says why: {kind:?}"
    );
    assert!(expired.seen().is_empty());
}

#[tokio::test]
async fn insecure_stays_with_the_upstream() {
    let ca = Ca::new();
    let storage = Server::tls(&ca, |_| ok("hello")).await;
    let to = storage.url();
    let server = Server::tls(&ca, move |_| answer("307 There", &[("Location", &to)], "")).await;
    let kind = Room::of_world(&server.url(), None, true).kind().await;
    assert!(matches!(kind, ErrorKind::Unreachable(Unreachable::Tls(_))), "{kind:?}");
    assert!(storage.seen().is_empty());
}

#[tokio::test]
async fn a_ca_file_that_is_none() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let missing = Path::new("/nonexistent/ca.pem");
    let set_up = |ca: &Path| {
        let url = "https://mirror.test".parse().unwrap();
        Upstreams::new(&config(vec![UpstreamConfig { ca: vec![ca.to_owned()], ..UpstreamConfig::new(url) }]))
            .unwrap_err()
    };
    let error = set_up(missing);
    assert!(
        matches!(&error, SetupError::Upstream { source: TlsError::Unreadable { path, .. }, .. } if path == missing)
    );
    let text = error.to_string();
    assert!(text.contains("/nonexistent/ca.pem") && text.contains("registry.test"), "{text}");
    let error = set_up(empty.path());
    assert!(matches!(error, SetupError::Upstream { source: TlsError::Invalid { .. }, .. }), "{error}");
}

/// What the HTTP/2 server's blob is: more than a window.
const SIZE: usize = 5 << 20;

/// An HTTP/2 registry, whose blob breaks off after five bytes when `breaks` says so.
async fn http2_alone(ca: &Ca, breaks: Option<Arc<Notify>>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = ca.acceptor(&[b"h2"]);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // One connection is all that is taken: a second one would hang.
        let stream = loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Who doesn't speak HTTP/2 is none.
            if let Ok(stream) = tls.accept(stream).await {
                break TokioIo::new(stream);
            }
        };
        let service = service_fn(move |request: Request<Incoming>| {
            assert_eq!(request.version(), Version::HTTP_2);
            let body = match breaks.clone() {
                Some(breaks) => {
                    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"hello")))]);
                    let end = stream::once(async move {
                        breaks.notified().await;
                        Err("the server gives up")
                    });
                    BodyExt::boxed(StreamBody::new(first.chain(end)))
                }
                None => Full::new(Bytes::from(vec![7; SIZE])).map_err(|_: Infallible| "never").boxed(),
            };
            ready(Response::builder().header("content-length", SIZE).body(body))
        });
        let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
    });
    (address, tasks)
}

#[tokio::test]
async fn many_blobs_over_one_http2_connection() {
    let ca = Ca::new();
    let (address, _tasks) = http2_alone(&ca, None).await;
    let room = Room::new(address::refused, &format!("https://{address}"), Some(ca.path()), false);
    room.blob(0).await.unwrap();
    let whole = || async { room.blob(0).await.unwrap().body.whole(SIZE).await.unwrap().len() };
    assert_eq!(tokio::join!(whole(), whole(), whole()), (SIZE, SIZE, SIZE));
}

#[tokio::test]
async fn parts_come_by_connections_of_their_own() {
    let ca = Ca::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, tls) = (listener.local_addr().unwrap(), ca.acceptor(&[b"h2", b"http/1.1"]));
    let versions = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    let seen = Arc::clone(&versions);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = tls.accept(stream).await.unwrap();
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let seen = Arc::clone(&seen);
            let service = service_fn(move |request: Request<Incoming>| {
                seen.lock().unwrap().push((number, request.version()));
                let response = match request.headers().get("range") {
                    Some(range) => {
                        let part = range.to_str().unwrap().trim_start_matches("bytes=").to_owned();
                        Response::builder().status(206).header("content-range", format!("bytes {part}/{SIZE}"))
                    }
                    None => Response::builder(),
                };
                let len = if request.headers().contains_key("range") { 1 << 20 } else { SIZE };
                ready(response.header("content-length", len).body(Full::new(Bytes::from(vec![7; len]))))
            });
            connections.spawn(async move {
                let stream = TokioIo::new(stream);
                let _ = match is_http2 {
                    true => http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await,
                    false => http1::Builder::new().serve_connection(stream, service).await,
                };
            });
        }
    });
    let room = Room::new(address::refused, &format!("https://{address}"), Some(ca.path()), false);
    let part = async |from: u64| {
        let part = Part { from, to: Some(from + (1 << 20)) };
        let answer = room.upstream.blob(&Grant::Anonymous, &repository(), &digest(), part).await.unwrap();
        answer.body.whole(SIZE).await.unwrap().len()
    };
    let whole = async || room.blob(0).await.unwrap().body.whole(SIZE).await.unwrap().len();
    assert_eq!(tokio::join!(whole(), whole()), (SIZE, SIZE));
    assert_eq!(tokio::join!(part(0), part(1 << 20), part(2 << 20)), (1 << 20, 1 << 20, 1 << 20));
    let versions = versions.lock().unwrap().clone();
    let by = |version| {
        let of = versions.iter().filter(|(_, seen)| *seen == version);
        of.map(|(connection, _)| *connection).collect::<std::collections::BTreeSet<i32>>().len()
    };
    assert_eq!((by(Version::HTTP_2), by(Version::HTTP_11)), (1, 3), "{versions:?}");
}

#[tokio::test]
async fn parts_come_by_http2_where_there_is_nothing_else() {
    let ca = Ca::new();
    // One connection is all that it serves, and HTTP/2 all that it speaks: who offers less never gets so far.
    let (address, _tasks) = http2_alone(&ca, None).await;
    let room = Room::new(address::refused, &format!("https://{address}"), Some(ca.path()), false);
    let part = Part { from: 0, to: Some(SIZE as u64) };
    let answer = room.upstream.blob(&Grant::Anonymous, &repository(), &digest(), part).await.unwrap();
    assert_eq!(answer.body.whole(SIZE).await.unwrap().len(), SIZE);
}

#[tokio::test]
async fn an_http2_stream_that_breaks_off() {
    let ca = Ca::new();
    let breaks = Arc::new(Notify::new());
    let (address, _tasks) = http2_alone(&ca, Some(Arc::clone(&breaks))).await;
    let room = Room::new(address::refused, &format!("https://{address}"), Some(ca.path()), false);
    let mut answer = room.blob(0).await.unwrap();
    assert_eq!(answer.size, Some(SIZE as u64));
    assert_eq!(answer.body.frame().await.unwrap().unwrap(), "hello");
    breaks.notify_one();
    assert_eq!(*answer.body.frame().await.unwrap_err().kind(), ErrorKind::Cut { at: 5 });
}
