//! How an upstream is reached: what it is shown, and how many requests at once.

use std::fs;

use super::super::{SetupError, TlsError, Unreachable};
use super::server::{Act, Ca, Server, answer, ok, raw};
use super::*;
use crate::image::Access;

#[tokio::test]
async fn headers_stay_with_the_upstream() {
    let ca = Ca::new();
    let storage = Server::tls(&ca, |_| ok("hello")).await;
    let to = storage.url();
    let server = Server::tls(&ca, move |head| {
        if head.starts_with("GET /v2/acme/app/blobs") {
            answer("307 There", &[("Location", &to)], "")
        } else {
            let realm = format!("Bearer realm=\"{to}/token\"");
            answer("401 No", &[("WWW-Authenticate", &realm)], "")
        }
    })
    .await;
    let mut upstream = UpstreamConfig { ca: vec![ca.path().to_owned()], ..at(&server.url()) };
    upstream.add_header("X-Team", "hush").unwrap();
    upstream.add_header("X-Team", "hush, hush").unwrap();
    upstream.add_header("User-Agent", "custom").unwrap();
    let room = Room::with(nothing, upstream);
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    room.tag().await.unwrap_err();
    assert_eq!(server.count("x-team: hush\r\nx-team: hush, hush\r\n"), server.seen().len());
    assert_eq!(server.count("user-agent: custom\r\n"), server.seen().len());
    assert_eq!(storage.count("GET /token"), 1);
    assert_eq!((storage.count("hush"), storage.count("custom")), (0, 0));
}

#[tokio::test]
async fn what_comes_with_a_key_is_not_anybodys_whatever_the_token() {
    let server = Server::plain(|head| match () {
        () if head.contains(" /token") => ok(r#"{"token":"anybodys"}"#),
        () if head.contains("authorization: Bearer anybodys\r\n") => ok("hello"),
        () => credentials::bearer(head),
    })
    .await;
    for (header, expected) in [("X-Team", Access::Authorized), ("User-Agent", Access::Anonymous)] {
        let mut upstream = UpstreamConfig { insecure: true, ..at(&server.url()) };
        upstream.add_header(header, "hush").unwrap();
        assert_eq!(Room::with(address::refused, upstream).blob(0).await.unwrap().access, expected, "{header}");
    }
}

#[tokio::test]
async fn a_way_back_home_brings_no_headers() {
    let ca = Ca::new();
    let away = Arc::new(std::sync::OnceLock::<String>::new());
    let (out, back) = (Arc::clone(&away), Arc::new(std::sync::OnceLock::<String>::new()));
    let home = Arc::clone(&back);
    let storage =
        Server::tls(&ca, move |_| answer("307 Back", &[("Location", &format!("{}/x", home.get().unwrap()))], "")).await;
    let server = Server::tls(&ca, move |head| {
        if head.starts_with("GET /x") {
            ok("hello")
        } else {
            answer("307 Out", &[("Location", out.get().unwrap())], "")
        }
    })
    .await;
    away.set(storage.url()).unwrap();
    back.set(server.url()).unwrap();
    let mut upstream = UpstreamConfig { ca: vec![ca.path().to_owned()], ..at(&server.url()) };
    upstream.add_header("X-Team", "hush").unwrap();
    assert_eq!(Room::with(nothing, upstream).bytes().await.unwrap(), b"hello");
    assert_eq!((server.seen().len(), server.count("x-team: hush")), (2, 1));
}

#[tokio::test]
async fn a_client_certificate_that_changes() {
    let (ca, clients, others) = (Ca::new(), Ca::new(), Ca::new());
    // Each request has a connection, and thus a handshake, of its own.
    let script = |_: &str| {
        let mut acts = ok("hello");
        acts.push(Act::Close);
        acts
    };
    let server = Server::tls_by(ca.acceptor_for(&[], Some(&clients)), script).await;
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let write = |ca: &Ca| {
        let (certificate_pem, key_pem) = ca.issue("larder");
        fs::write(&certificate, certificate_pem).unwrap();
        fs::write(&key, key_pem).unwrap();
    };
    write(&others);
    let upstream = UpstreamConfig {
        ca: vec![ca.path().to_owned()],
        client_cert: Some(certificate.clone()),
        client_key: Some(key.clone()),
        ..at(&server.url())
    };
    let room = Room::with(address::refused, upstream);
    room.bytes().await.unwrap_err();
    write(&clients);
    let accepted = async { while room.bytes().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(10), accepted).await.unwrap();
    // Half a pair is no reason to stop: the last whole one holds.
    fs::write(&key, others.issue("larder").1).unwrap();
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_millis(1200) {
        assert_eq!(room.bytes().await.unwrap(), b"hello");
    }
}

#[tokio::test]
async fn a_client_certificate_stays_with_the_upstream() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let storage = Server::tls_by(ca.acceptor_for(&[], Some(&clients)), |_| ok("hello")).await;
    let to = storage.url();
    let server =
        Server::tls_by(ca.acceptor_for(&[], Some(&clients)), move |_| answer("307 There", &[("Location", &to)], ""));
    let server = server.await;
    let folder = tempfile::tempdir().unwrap();
    let both = folder.path().join("both.pem");
    let (certificate, key) = clients.issue("larder");
    fs::write(&both, format!("{certificate}{key}")).unwrap();
    let upstream = UpstreamConfig { ca: vec![ca.path().to_owned()], client_cert: Some(both), ..at(&server.url()) };
    let room = Room::with(nothing, upstream);
    room.bytes().await.unwrap_err();
    assert_eq!((server.seen().len(), storage.seen().len()), (1, 0));
}

#[tokio::test]
async fn a_pair_that_is_none() {
    let (one, other) = (Ca::new().issue("larder"), Ca::new().issue("larder"));
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    fs::write(&certificate, one.0).unwrap();
    fs::write(&key, other.1).unwrap();
    let upstream =
        UpstreamConfig { client_cert: Some(certificate), client_key: Some(key.clone()), ..at("https://m.test") };
    let error = Upstreams::new(&config(vec![upstream])).unwrap_err();
    assert!(
        matches!(&error, SetupError::Upstream { source: TlsError::Invalid { path, .. }, .. } if *path == key),
        "{error}"
    );
}

/// Answers HEAD after so long; its bodies stand still.
async fn standing_still(head_after: Duration) -> Server {
    Server::plain(move |head| {
        if head.starts_with("HEAD") {
            return std::iter::once(Act::Wait(head_after)).chain(ok("")).collect();
        }
        vec![raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"), Act::Hang]
    })
    .await
}

/// That bears so many requests at once.
fn bearing(most: usize, server: &Server) -> Room {
    let max_connections = std::num::NonZeroUsize::new(most);
    Room::with(address::refused, UpstreamConfig { insecure: true, max_connections, ..at(&server.url()) })
}

#[tokio::test]
async fn no_more_requests_at_once_than_it_bears() {
    let server = standing_still(Duration::ZERO).await;
    let room = bearing(3, &server);
    assert_eq!(room.upstream.ranges_at_once(), 2);
    let one = room.blob(0).await.unwrap();
    let two = room.blob(0).await.unwrap();
    assert!(!room.upstream.has_room());
    // What is quick finds a place.
    room.tag().await.unwrap();
    let (third, ()) = tokio::join!(room.blob(0), async {
        until(|| room.upstream.is_waited_for()).await;
        assert_eq!(room.upstream.ranges_now(2), 1);
    });
    assert_eq!(*third.unwrap_err().kind(), ErrorKind::Busy(3), "nobody gave way");
    assert_eq!(server.seen().len(), 3);
    assert!(room.upstream.is_available(), "that it is busy says nothing against it");
    // A body's place is free again when it is dropped.
    let (answer, ()) = tokio::join!(room.blob(0), async { drop(one) });
    answer.unwrap();
    drop(two);
}

#[tokio::test]
async fn a_requests_time_begins_with_its_place() {
    let server = standing_still(HEADER * 3 / 4).await;
    let room = bearing(1, &server);
    let body = room.blob(0).await.unwrap();
    let (answer, ()) = tokio::join!(room.tag(), async {
        tokio::time::sleep(HEADER / 2).await;
        drop(body);
    });
    answer.unwrap();
    assert!(room.upstream.is_available());
}

#[tokio::test]
async fn a_challenge_holds_no_place_while_the_token_comes() {
    let url = Arc::new(std::sync::OnceLock::<String>::new());
    let realm = Arc::clone(&url);
    let server = Server::plain(move |head| match () {
        () if head.starts_with("GET /token") => ok(r#"{"token":"t"}"#),
        () if head.contains("authorization: Bearer t") => ok("hello"),
        () => {
            let challenge = format!("Bearer realm=\"{}/token\"", realm.get().unwrap());
            answer("401 No", &[("WWW-Authenticate", &challenge)], "")
        }
    })
    .await;
    url.set(server.url()).unwrap();
    let room = bearing(1, &server);
    assert_eq!(room.bytes().await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_path_of_its_own() {
    let server = Server::plain(|_| ok("hello")).await;
    let url = format!("{}/v2/cache", server.url());
    let upstream = UpstreamConfig { insecure: true, override_path: true, ns: false, ..at(&url) };
    Room::with(address::refused, upstream).tag().await.unwrap();
    assert_eq!(server.count("HEAD /v2/cache/acme/app/manifests/v1 HTTP/1.1"), 1);
}

#[tokio::test]
async fn a_dead_host_behind_a_redirect() {
    let ca = Ca::new();
    let port = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let to = format!("https://127.0.0.1:{port}/blob");
    let server = Server::tls(&ca, move |head| {
        if head.starts_with("GET /v2/acme") { answer("307 There", &[("Location", &to)], "") } else { ok("") }
    })
    .await;
    let room = Room::with(nothing, UpstreamConfig { ca: vec![ca.path().to_owned()], ..at(&server.url()) });
    assert_eq!(room.kind().await, ErrorKind::Unreachable(Unreachable::Refused));
    assert!(!room.upstream.is_available());
    // The probe asks the host that failed: that the upstream itself is well says nothing.
    let storage = loop {
        if let Ok(listener) = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).await {
            break listener;
        }
    };
    let probed = tokio::time::timeout(Duration::from_secs(5), storage.accept()).await;
    probed.unwrap().unwrap();
    assert_eq!(server.count("GET /v2/ "), 0);
}
