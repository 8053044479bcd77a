//! Anonymous tokens.

use crate::upstream::{Grant, Part};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::server::{Act, Server, answer, ok};
use super::*;

type Expected = fn(&ErrorKind) -> bool;

/// A registry that wants a token, and its token server at `/token`. It takes the `valid`-th token alone, or any for 0.
async fn registry_with_tokens(expires_in: f64, valid: Arc<AtomicUsize>, gate: watch::Receiver<bool>) -> Server {
    let fetched = AtomicUsize::new(0);
    Server::plain(move |head| {
        if head.starts_with("GET /token") {
            let token = format!("token-{}", fetched.fetch_add(1, Ordering::SeqCst) + 1);
            let reply = format!(r#"{{"token":"{token}","expires_in":{expires_in}}}"#);
            let mut acts = vec![Act::Await(gate.clone())];
            acts.extend(ok(&reply));
            return acts;
        }
        let wanted = match valid.load(Ordering::SeqCst) {
            0 => "authorization: Bearer token-".to_owned(),
            number => format!("authorization: Bearer token-{number}\r\n"),
        };
        if head.contains(&wanted) {
            return ok("hello");
        }
        challenge(&format!(r#"Bearer realm="http://{}/token",service="test""#, host(head)))
    })
    .await
}

fn challenge(text: &str) -> Vec<Act> {
    answer("401 Unauthorized", &[("WWW-Authenticate", text)], r#"{"errors":[]}"#)
}

fn host(head: &str) -> &str {
    head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap()
}

fn first() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(1))
}

/// Who has shown nothing may come back with what is wanted, where it can be had at all.
#[tokio::test]
async fn what_is_wanted_is_told_to_who_has_shown_nothing() {
    for (text, expected) in [
        (r#"Bearer realm="http://127.0.0.1/token""#, true),
        (r#"Basic realm="x""#, true),
        ("Negotiate", false),
        (r#"Bearer realm="nowhere""#, false),
    ] {
        let server = Server::plain(move |_| challenge(text)).await;
        let room = Room::of(&server.url());
        for (grant, is_challenge) in [(Grant::None, expected), (Grant::Anonymous, false)] {
            let error = room.upstream.head_manifest(&grant, &repository(), &reference()).await.unwrap_err();
            assert_eq!(error.is_challenge(), is_challenge, "{text}: {error}");
        }
        let unauthorized = room.upstream.head_manifest(&Grant::None, &repository(), &reference()).await.unwrap_err();
        assert_eq!(*unauthorized.kind(), ErrorKind::Unauthorized);
    }
}

#[tokio::test]
async fn fetched_once_and_then_sent_at_once() {
    let server = registry_with_tokens(300.0, first(), watch::channel(true).1).await;
    let room = Room::of(&server.url());
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    let seen = server.seen();
    assert!(seen[1].starts_with("GET /token?service=test&scope=repository%3Aacme%2Fapp%3Apull HTTP/1.1\r\n"));
    assert!(!seen[1].contains("authorization"));
    let authorized: Vec<bool> = seen.iter().map(|head| head.contains("authorization: Bearer token-1\r\n")).collect();
    assert_eq!(authorized, [false, false, true, true]);
    assert_eq!(server.connections(), 1, "answers that only say no leave the connection in use");

    // Another repository is another token.
    let other: Repository = "acme/other".parse().unwrap();
    assert!(room.upstream.blob(&Grant::Anonymous, &other, &digest(), Part::from(0)).await.is_err());
    assert_eq!(server.count("GET /token"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetched_once_for_all_who_wait() {
    let (open, gate) = watch::channel(false);
    let server = registry_with_tokens(300.0, first(), gate).await;
    let room = Arc::new(Room::of(&server.url()));
    let mut pulls = JoinSet::new();
    for _ in 0..20 {
        let room = Arc::clone(&room);
        pulls.spawn(async move { room.bytes().await });
    }
    // All who came wait; who comes later joins them without asking.
    server.wait_until(|seen| seen.iter().any(|head| head.starts_with("GET /token"))).await;
    open.send(true).unwrap();
    while let Some(pull) = pulls.join_next().await {
        assert_eq!(pull.unwrap().unwrap(), b"hello");
    }
    assert_eq!(server.count("GET /token"), 1);
    assert_eq!(server.count("authorization: Bearer token-1\r\n"), 20);
}

#[tokio::test]
async fn who_asked_first_may_leave() {
    let (open, gate) = watch::channel(false);
    let server = registry_with_tokens(300.0, first(), gate).await;
    let room = Arc::new(Room::of(&server.url()));
    let leaver = {
        let room = Arc::clone(&room);
        tokio::spawn(async move { room.bytes().await })
    };
    server.wait_until(|seen| seen.iter().any(|head| head.starts_with("GET /token"))).await;
    leaver.abort();
    assert!(leaver.await.unwrap_err().is_cancelled());
    let (bytes, ()) = tokio::join!(room.bytes(), async { open.send(true).unwrap() });
    assert_eq!(bytes.unwrap(), b"hello");
    assert_eq!(server.count("GET /token"), 1);
}

#[tokio::test]
async fn renewed_when_it_ends() {
    let server = registry_with_tokens(0.2, Arc::new(AtomicUsize::new(0)), watch::channel(true).1).await;
    let room = Room::of(&server.url());
    let renewal = async {
        while server.count("GET /token") < 2 {
            assert_eq!(room.bytes().await.unwrap(), b"hello");
        }
    };
    tokio::time::timeout(Duration::from_secs(5), renewal).await.unwrap();
    let challenged = server.seen().iter().filter(|h| h.contains("/blobs/") && !h.contains("authorization")).count();
    assert_eq!(challenged, 1, "the way to the token is remembered");
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let valid = first();
    let server = registry_with_tokens(300.0, Arc::clone(&valid), watch::channel(true).1).await;
    let room = Room::of(&server.url());
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    valid.store(2, Ordering::SeqCst);
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    assert_eq!(server.count("GET /token"), 2);
    valid.store(99, Ordering::SeqCst);
    assert_eq!(room.kind().await, ErrorKind::Unauthorized);
    assert_eq!(server.count("GET /token"), 3);
}

#[tokio::test]
async fn challenges_that_lead_nowhere() {
    let elsewhere = Server::plain(|_| ok(r#"{"token":"t"}"#)).await;
    let forbidden: Expected = |kind| matches!(kind, ErrorKind::Forbidden(_));
    let unauthorized: Expected = |kind| *kind == ErrorKind::Unauthorized;
    let cases = [
        (format!(r#"Bearer realm="http://{}/token""#, elsewhere.address), forbidden),
        (format!(r#"Bearer realm="https://{}/token""#, elsewhere.address), forbidden),
        (r#"Bearer realm="http://169.254.169.254/latest""#.to_owned(), forbidden),
        (r#"Bearer service="x""#.to_owned(), unauthorized),
        (r#"Basic realm="x""#.to_owned(), unauthorized),
        (r#"Bearer realm="gopher://x/""#.to_owned(), unauthorized),
    ];
    for (text, expected) in cases {
        let header = text.clone();
        let server = Server::plain(move |_| challenge(&header)).await;
        let kind = Room::of(&server.url()).kind().await;
        assert!(expected(&kind), "{text}: {kind:?}");
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn token_servers_that_fail() {
    let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(70_000));
    let cases: [(&str, &str, Expected); 8] = [
        ("403 No", "", |k| *k == ErrorKind::Unauthorized),
        ("401 No", "", |k| *k == ErrorKind::Unauthorized),
        ("400 No", "", |k| *k == ErrorKind::Unauthorized),
        ("404 No", "", |k| *k == ErrorKind::Unauthorized),
        ("503 Busy", "", |k| matches!(k, ErrorKind::Server(status) if status.as_u16() == 503)),
        ("429 Slow", "", |k| matches!(k, ErrorKind::RateLimited { .. })),
        ("200 OK", "<html>", |k| matches!(k, ErrorKind::Protocol(_))),
        ("200 OK", &long, |k| matches!(k, ErrorKind::Protocol(_))),
    ];
    for (status, body, expected) in cases {
        let (status_line, reply) = (status, body.to_owned());
        let server = Server::plain(move |head| {
            if head.starts_with("GET /token") {
                return answer(status_line, &[], &reply);
            }
            challenge(&format!(r#"Bearer realm="http://{}/token""#, host(head)))
        })
        .await;
        let room = Room::of(&server.url());
        let kind = room.kind().await;
        assert!(expected(&kind), "{status}: {kind:?}");
        // What failed is not remembered: the next request starts from the challenge.
        assert!(expected(&room.kind().await), "{status}");
        assert_eq!(server.count("GET /token"), 2, "{status}");
    }
}

#[tokio::test]
async fn a_token_server_that_never_answers() {
    let (_open, gate) = watch::channel(false);
    let server = registry_with_tokens(300.0, first(), gate).await;
    assert_eq!(Room::of(&server.url()).kind().await, ErrorKind::Timeout(HEADER));
}
