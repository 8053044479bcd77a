//! Redirects, as registries send them to their storage.

use std::sync::atomic::{AtomicBool, Ordering};

use super::server::{Act, Ca, Server, answer, ok};
use super::*;

fn redirect(status: &str, to: &str) -> Vec<Act> {
    answer(status, &[("Location", to)], "moved")
}

#[tokio::test]
async fn all_kinds_are_followed() {
    for status in ["301 Moved", "302 Found", "303 Other", "307 Temporary", "308 Permanent"] {
        let server = Server::plain(move |head| {
            if head.contains("/storage/") { ok("hello") } else { redirect(status, "/storage/blob?signed=1") }
        })
        .await;
        let room = Room::of(&server.url());
        assert_eq!(room.bytes().await.unwrap(), b"hello");
        assert!(server.seen()[1].starts_with("GET /storage/blob?signed=1 "), "{status}");
        assert_eq!(server.connections(), 1);
    }
}

#[tokio::test]
async fn the_range_goes_along_and_credentials_dont() {
    let ca = Ca::new();
    let storage = Server::tls(&ca, |_| answer("206 Partial", &[("Content-Range", "bytes 2-4/5")], "llo")).await;
    let to = format!("{}/blob", storage.url());
    let server = Server::tls(&ca, move |head| {
        let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        if head.starts_with("GET /token") {
            ok(r#"{"token":"secret"}"#)
        } else if !head.contains("authorization: Bearer secret") {
            answer("401 No", &[("WWW-Authenticate", &format!(r#"Bearer realm="https://{host}/token""#))], "")
        } else if head.contains("/again") {
            redirect("307 Temporary", &to)
        } else {
            redirect("307 Temporary", "/again")
        }
    })
    .await;
    let room = Room::of_world(&server.url(), Some(ca.path()), false);
    let answer = room.blob(2).await.unwrap();
    assert_eq!(&*answer.body.whole(5).await.unwrap(), b"llo");

    assert_eq!(server.count("authorization: Bearer secret"), 2, "within the authority it stays");
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].contains("range: bytes=2-\r\n"));
    assert!(!seen[0].to_ascii_lowercase().contains("authorization") && !seen[0].contains("secret"), "{}", seen[0]);
}

#[tokio::test]
async fn refusals_of_storage_are_no_answers_of_the_registry() {
    let ca = Ca::new();
    for (status, is_answer) in [("403 Expired", false), ("401 No", false), ("404 Gone", true)] {
        let storage = Server::tls(&ca, move |_| answer(status, &[], "")).await;
        let to = storage.url();
        let server = Server::tls(&ca, move |_| redirect("307 Temporary", &to)).await;
        let error = Room::of_world(&server.url(), Some(ca.path()), false).blob(0).await.unwrap_err();
        assert_eq!(error.is_answer(), is_answer, "{status}: {error}");
        assert!(error.to_string().starts_with(&format!("{}, at {}: ", server.address, storage.address)), "{error}");
    }
}

#[tokio::test]
async fn loops_end() {
    let server = Server::plain(|_| redirect("302 Found", "/round")).await;
    let kind = Room::of(&server.url()).kind().await;
    assert_eq!(kind, ErrorKind::Protocol("more than 5 redirects".to_owned()));
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn redirects_to_nowhere() {
    for location in ["ftp://x/", "https://user:pass@x/", "http://[", ""] {
        let server = Server::plain(move |head| match (location, head.contains("/v2/")) {
            ("", _) => answer("302 Found", &[], ""),
            _ => redirect("302 Found", location),
        })
        .await;
        let kind = Room::of(&server.url()).kind().await;
        assert!(matches!(kind, ErrorKind::Protocol(_)), "{location:?}: {kind:?}");
        assert_eq!(server.seen().len(), 1);
    }
}

/// A registry that answers its probe, and whose storage doesn't: it is the storage that says when it is well again.
#[tokio::test]
async fn silence_where_a_redirect_led_is_probed_there() {
    let (ca, is_silent) = (Ca::new(), Arc::new(AtomicBool::new(true)));
    let silent = Arc::clone(&is_silent);
    let storage =
        Server::tls(&ca, move |_| if silent.load(Ordering::SeqCst) { vec![Act::Hang] } else { ok("hello") }).await;
    let to = format!("{}/blob", storage.url());
    let first =
        Server::tls(&ca, move |head| if head.contains("/blobs/") { redirect("307 Temporary", &to) } else { ok("") })
            .await;
    let second = Server::tls(&ca, |_| ok("hello")).await;
    let both = [&first, &second].map(|server| UpstreamConfig { ca: vec![ca.path().to_owned()], ..at(&server.url()) });
    let room = Upstreams::guarded_by(nothing, &config(both.into())).unwrap();
    let chain = room.of(&registry());
    let ask = async || {
        let asked = chain.first(UpstreamError::is_answer, |upstream| async move {
            upstream.blob(&Grant::Anonymous, &repository(), &digest(), Part::WHOLE).await
        });
        Arc::ptr_eq(&asked.await.unwrap().0, &chain[0])
    };
    assert!(!ask().await, "the second was quicker");
    until(|| chain[0].state().down.is_some()).await;
    let asked = first.seen().len();
    is_silent.store(false, Ordering::SeqCst);
    until(|| chain[0].is_available()).await;
    assert_eq!(first.seen().len(), asked, "its own probe would have said nothing");
    assert!(ask().await);
}
