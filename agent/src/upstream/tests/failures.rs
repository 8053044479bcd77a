//! Every way in which no answer comes, or a no.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::Unreachable;
use super::server::{Act, Server, answer, ok, raw};
use super::*;

#[tokio::test]
async fn statuses() {
    let limited = |retry_after| ErrorKind::RateLimited { retry_after };
    let server = |code| ErrorKind::Server(http::StatusCode::from_u16(code).unwrap());
    let cases = [
        ("404 Not Found", "x", ErrorKind::NotFound, true),
        ("410 Gone", "x", ErrorKind::NotFound, true),
        ("401 Unauthorized", "x", ErrorKind::Unauthorized, true),
        ("403 Forbidden", "x", ErrorKind::Denied, true),
        ("451 Unavailable", "x", ErrorKind::Denied, true),
        ("429 Slow", "x", limited(None), false),
        ("429 Slow", "7", limited(Some(Duration::from_secs(7))), false),
        ("408 Late", "x", server(408), false),
        ("500 Broken", "x", server(500), false),
        ("503 Busy", "x", server(503), false),
        ("405 No", "x", server(405), false),
        ("416 No", "x", server(416), false),
        ("204 Nothing", "x", server(204), false),
        ("304 Same", "x", server(304), false),
    ];
    for (status, retry_after, expected, is_answer) in cases {
        let server = Server::plain(move |_| answer(status, &[("Retry-After", retry_after)], "")).await;
        let error = Room::of(&server.url()).tag().await.unwrap_err();
        assert_eq!((error.kind(), error.is_answer()), (&expected, is_answer), "{status}");
        assert_eq!(error.upstream(), server.address.to_string());
    }
}

#[tokio::test]
async fn nobody_listens() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let error = Room::of(&format!("http://127.0.0.1:{port}")).tag().await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unreachable(Unreachable::Refused));
    assert_eq!(error.to_string(), format!("127.0.0.1:{port}: connection refused"));
    assert!(!error.is_answer());
}

#[tokio::test]
async fn a_name_without_an_address() {
    // Two dots make it fail within this machine.
    let kind = Room::of("http://no..name").kind().await;
    assert!(matches!(kind, ErrorKind::Unreachable(Unreachable::Dns(_))), "{kind:?}");
}

#[tokio::test]
async fn a_handshake_that_never_ends() {
    let server = Server::plain(|_| vec![Act::Hang]).await;
    let room = Room::of(&format!("https://{}", server.address));
    assert_eq!(room.kind().await, ErrorKind::Unreachable(Unreachable::ConnectTimeout(CONNECT)));
}

#[tokio::test]
async fn a_head_that_never_comes() {
    for acts in [vec![], vec![raw("HTTP/1.1 200 OK\r\nContent-Le")]] {
        let acts = std::sync::Mutex::new(acts);
        let server = Server::plain(move |_| {
            let mut acts = std::mem::take(&mut *acts.lock().unwrap());
            acts.push(Act::Hang);
            acts
        })
        .await;
        assert_eq!(Room::of(&server.url()).kind().await, ErrorKind::Timeout(HEADER));
    }
}

#[tokio::test]
async fn a_server_that_speaks_no_http() {
    let server = Server::plain(|_| vec![raw("SSH-2.0-OpenSSH_9.9\r\n"), Act::Close]).await;
    let kind = Room::of(&server.url()).kind().await;
    assert!(matches!(kind, ErrorKind::Protocol(_)), "{kind:?}");
}

#[tokio::test]
async fn a_connection_that_closes_before_the_head() {
    let server = Server::plain(|_| vec![Act::Close]).await;
    let kind = Room::of(&server.url()).kind().await;
    assert!(matches!(kind, ErrorKind::Unreachable(Unreachable::Broken(_))), "{kind:?}");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_kept_connection_that_has_closed_is_replaced() {
    let requests = AtomicUsize::new(0);
    let server = Server::plain(move |_| match requests.fetch_add(1, Ordering::SeqCst) {
        1 => vec![Act::Close],
        _ => ok("hello"),
    })
    .await;
    let room = Room::of(&server.url());
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    assert_eq!((server.seen().len(), server.connections()), (3, 2));
}

#[tokio::test]
async fn wrong_heads() {
    let other = Digest::of(b"other").to_string();
    for (name, value) in [
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "zstd, identity"),
        ("Docker-Content-Digest", "sha256:short"),
        ("Docker-Content-Digest", ""),
        ("Docker-Content-Digest", &other),
    ] {
        let (header, text) = (name, value.to_owned());
        let server = Server::plain(move |_| answer("200 OK", &[(header, &text)], "hello")).await;
        let kind = Room::of(&server.url()).kind().await;
        assert!(matches!(kind, ErrorKind::Protocol(_)), "{name}: {value}: {kind:?}");
    }
}
