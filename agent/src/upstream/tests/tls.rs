//! Certificates, and HTTP/2.

use std::convert::Infallible;
use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
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
async fn http2(ca: &Ca, breaks: Option<Arc<Notify>>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = ca.acceptor(&[b"h2"]);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // One connection is all that is taken: a second one would hang.
        let (stream, _) = listener.accept().await.unwrap();
        let stream = TokioIo::new(tls.accept(stream).await.unwrap());
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
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
    });
    (address, tasks)
}

#[tokio::test]
async fn many_blobs_over_one_http2_connection() {
    let ca = Ca::new();
    let (address, _tasks) = http2(&ca, None).await;
    let room = Room::new(address::refused, &format!("https://{address}"), Some(ca.path()), false);
    room.blob(0).await.unwrap();
    let whole = || async { room.blob(0).await.unwrap().body.whole(SIZE).await.unwrap().len() };
    assert_eq!(tokio::join!(whole(), whole(), whole()), (SIZE, SIZE, SIZE));
}

#[tokio::test]
async fn an_http2_stream_that_breaks_off() {
    let ca = Ca::new();
    let breaks = Arc::new(Notify::new());
    let (address, _tasks) = http2(&ca, Some(Arc::clone(&breaks))).await;
    let room = Room::new(address::refused, &format!("https://{address}"), Some(ca.path()), false);
    let mut answer = room.blob(0).await.unwrap();
    assert_eq!(answer.size, Some(SIZE as u64));
    assert_eq!(answer.body.frame().await.unwrap().unwrap(), "hello");
    breaks.notify_one();
    assert_eq!(*answer.body.frame().await.unwrap_err().kind(), ErrorKind::Cut { at: 5 });
}
