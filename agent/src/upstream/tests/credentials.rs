//! The caller's own credentials: to whom they go, and to whom never.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::server::{Act, Server, answer, ok};
use super::*;
use crate::image::Access;
use crate::upstream::Credentials;

fn alice() -> Grant {
    Grant::Credentials(Arc::new(Credentials::password("alice", "wonder land").unwrap()))
}

fn basic(pair: &str) -> String {
    format!("authorization: Basic {}\r\n", STANDARD.encode(pair))
}

fn host(head: &str) -> &str {
    head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap()
}

fn challenge(text: &str) -> Vec<Act> {
    answer("401 Unauthorized", &[("WWW-Authenticate", text)], r#"{"errors":[]}"#)
}

fn bearer(head: &str) -> Vec<Act> {
    challenge(&format!(r#"Bearer realm="http://{}/token",service="test""#, host(head)))
}

/// A registry with a token server at `/token`, which says of each request for a token what `token` says.
async fn registry(token: impl Fn(&str) -> Vec<Act> + Send + Sync + 'static) -> Server {
    Server::plain(move |head| match () {
        () if head.contains(" /token") => token(head),
        () if head.contains("authorization: Bearer good\r\n") => ok("hello"),
        () => bearer(head),
    })
    .await
}

async fn ask(room: &Room, grant: &Grant) -> Result<Access, ErrorKind> {
    let answer = room.upstream.blob(grant, &repository(), &digest(), Part::from(0)).await;
    let answer = answer.map_err(|e| e.kind().clone())?;
    assert_eq!(answer.body.whole(1 << 10).await.unwrap().as_ref(), b"hello");
    Ok(answer.access)
}

#[tokio::test]
async fn by_post_as_oauth2_has_it() {
    let server = registry(|_| ok(r#"{"access_token":"good","expires_in":300}"#)).await;
    let room = Room::of(&server.url());
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    let seen = server.seen();
    assert_eq!(seen.len(), 4, "one challenge, one token, two blobs");
    assert!(seen[1].starts_with("POST /token HTTP/1.1\r\n"));
    let expected = "service=test&client_id=larder&scope=repository%3Aacme%2Fapp%3Apull&grant_type=password\
                    &username=alice&password=wonder+land";
    assert!(seen[1].ends_with(expected), "{}", seen[1]);
}

#[tokio::test]
async fn by_get_where_post_is_not_known() {
    for status in ["400 No", "401 No", "404 No", "405 No"] {
        let server = registry(move |head| match () {
            () if head.starts_with("POST") => answer(status, &[], ""),
            () if head.contains(&basic("alice:wonder land")) => ok(r#"{"token":"good"}"#),
            () => ok(r#"{"token":"anonymous"}"#),
        })
        .await;
        assert_eq!(ask(&Room::of(&server.url()), &alice()).await, Ok(Access::Authorized), "{status}");
        assert_eq!(server.count("GET /token?service=test&scope=repository%3Aacme%2Fapp%3Apull "), 1, "{status}");
    }
    let broken = registry(|_| answer("503 Busy", &[], "")).await;
    let kind = ask(&Room::of(&broken.url()), &alice()).await.unwrap_err();
    assert!(matches!(kind, ErrorKind::Server(_)), "{kind:?}");
    assert_eq!(broken.count("GET /token"), 0, "what is broken is not asked in another way");
}

#[tokio::test]
async fn identity_tokens_are_exchanged() {
    let server = registry(|head| match () {
        () if head.ends_with("&grant_type=refresh_token&refresh_token=long%2Blived") => ok(r#"{"token":"good"}"#),
        () => answer("401 No", &[], ""),
    })
    .await;
    let room = Room::of(&server.url());
    let grant = |token| Grant::Credentials(Arc::new(Credentials::identity_token(token).unwrap()));
    assert_eq!(ask(&room, &grant("long+lived")).await, Ok(Access::Authorized));
    assert_eq!(ask(&room, &grant("another")).await, Err(ErrorKind::Unauthorized));
    assert_eq!(server.count("GET /token"), 0);
}

#[tokio::test]
async fn basic_is_sent_at_once_the_second_time() {
    let server = Server::plain(|head| match () {
        () if head.contains(&basic("alice:wonder land")) => ok("hello"),
        () => challenge(r#"Basic realm="x""#),
    })
    .await;
    let room = Room::of(&server.url());
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    assert_eq!(server.seen().len(), 3);
    assert_eq!(ask(&room, &Grant::Anonymous).await, Err(ErrorKind::Unauthorized));
    let mallory = Grant::Credentials(Arc::new(Credentials::password("mallory", "x").unwrap()));
    assert_eq!(ask(&room, &mallory).await, Err(ErrorKind::Unauthorized));
    assert_eq!(server.count(&basic("mallory:x")), 1, "accounts are locked for wrong passwords");
}

#[tokio::test]
async fn credentials_are_never_answered_by_an_anonymous_token() {
    let server = registry(|head| match () {
        () if head.starts_with("POST") || head.contains("authorization: Basic") => answer("401 No", &[], ""),
        () => ok(r#"{"token":"good"}"#),
    })
    .await;
    let room = Room::of(&server.url());
    assert_eq!(ask(&room, &Grant::Anonymous).await, Ok(Access::Anonymous));
    assert_eq!(ask(&room, &alice()).await, Err(ErrorKind::Unauthorized));
    let with_token = server.count("authorization: Bearer good\r\n");
    assert_eq!(with_token, 1, "the anonymous token that is at hand stays unused");
    assert_eq!(ask(&room, &Grant::None).await, Err(ErrorKind::Unauthorized));
    assert_eq!(server.count("authorization: Bearer good\r\n"), with_token, "and nothing is spent on nobody");
    assert_eq!(server.count("GET /token"), 2);
}

#[tokio::test]
async fn what_asks_for_nothing_is_told_nothing() {
    let server = Server::plain(|_| ok("hello")).await;
    assert_eq!(ask(&Room::of(&server.url()), &alice()).await, Ok(Access::Anonymous));
    assert_eq!(server.count("authorization"), 0);
}

#[tokio::test]
async fn never_along_a_redirect() {
    let elsewhere = Server::plain(|_| ok(r#"{"token":"good"}"#)).await;
    let url = format!("{}/token", elsewhere.url());
    let server = registry(move |_| answer("307 Go", &[("Location", &url)], "")).await;
    // With a guard that would let it go there.
    let room = Room::of_world(&server.url(), None, true);
    let kind = ask(&room, &alice()).await.unwrap_err();
    assert!(matches!(kind, ErrorKind::Protocol(_)), "{kind:?}");
    assert_eq!(elsewhere.connections(), 0);

    let server = Server::plain({
        let url = format!("{}/blob", elsewhere.url());
        move |head| match () {
            () if head.contains("authorization: Basic") => answer("307 Go", &[("Location", &url)], ""),
            () => challenge("Basic realm=x"),
        }
    })
    .await;
    let room = Room::of_world(&server.url(), None, true);
    let _ = room.upstream.blob(&alice(), &repository(), &digest(), Part::from(0)).await;
    assert_eq!(elsewhere.count("authorization"), 0);
}

#[tokio::test]
async fn never_to_a_realm_that_nobody_vouches_for() {
    let elsewhere = Server::plain(|_| ok(r#"{"token":"good"}"#)).await;
    let realm = format!(r#"Bearer realm="{}/token""#, elsewhere.url());
    let server = Server::plain(move |_| challenge(&realm)).await;
    let kind = ask(&Room::of(&server.url()), &alice()).await.unwrap_err();
    assert!(matches!(kind, ErrorKind::Forbidden(_)), "{kind:?}");
    assert_eq!(elsewhere.connections(), 0, "plain HTTP, at an address that the configuration doesn't name");
}

#[tokio::test]
async fn a_token_that_ended_or_is_refused_is_replaced_with_the_same_credentials() {
    let number = Arc::new(AtomicUsize::new(0));
    let tokens = Arc::clone(&number);
    let server = Server::plain(move |head| {
        if head.starts_with("POST /token") {
            let token = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return ok(&format!(r#"{{"token":"{token}","expires_in":300}}"#));
        }
        let current = tokens.load(Ordering::SeqCst);
        let refused_once = current == 1 && head.contains("range: bytes=3-");
        let good = head.contains(&format!("authorization: Bearer {current}\r\n"));
        if good && !refused_once { ok("hello") } else { bearer(head) }
    })
    .await;
    let room = Room::of(&server.url());
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    let refused = room.upstream.blob(&alice(), &repository(), &digest(), Part::from(3)).await;
    assert_eq!(refused.unwrap().access, Access::Authorized);
    assert_eq!(number.load(Ordering::SeqCst), 2);
    assert_eq!(server.count("password=wonder+land"), 2);
}
