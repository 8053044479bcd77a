//! Answers that are yes: what is asked, what is read, and bodies that end as they should and otherwise.

use super::server::{Act, Server, answer, ok, raw};
use super::*;
use crate::image::MediaType;
use crate::upstream::Grant;

#[tokio::test]
async fn what_is_asked_and_what_is_read() {
    let server = Server::plain(|head| {
        let digest = digest().to_string();
        let headers = [("Content-Type", MediaType::MANIFESTS[2]), ("Docker-Content-Digest", &*digest)];
        answer("200 OK", &headers, if head.starts_with("HEAD") { "" } else { "hello" })
    })
    .await;
    let room = Room::of(&format!("{}/prefix", server.url()));
    let answer = room.upstream.manifest(&Grant::Anonymous, &repository(), &reference()).await.unwrap();
    assert_eq!((answer.size, answer.offset, answer.digest), (Some(5), 0, Some(digest())));
    assert!(answer.media_type.is_some_and(|t| t.is_manifest()));
    assert_eq!(&*answer.body.whole(5).await.unwrap(), b"hello");

    room.tag().await.unwrap();
    room.upstream.head_blob(&Grant::Anonymous, &repository(), &digest()).await.unwrap();
    room.blob(0).await.unwrap();
    room.upstream.pass(&Grant::Anonymous, &repository(), "tags/list?n=5").await.unwrap();
    let seen = server.seen();
    let lines: Vec<&str> = seen.iter().filter_map(|head| head.lines().next()).collect();
    assert_eq!(
        lines,
        [
            "GET /prefix/v2/acme/app/manifests/v1?ns=registry.test HTTP/1.1",
            "HEAD /prefix/v2/acme/app/manifests/v1?ns=registry.test HTTP/1.1",
            &format!("HEAD /prefix/v2/acme/app/blobs/{}?ns=registry.test HTTP/1.1", digest()),
            &format!("GET /prefix/v2/acme/app/blobs/{}?ns=registry.test HTTP/1.1", digest()),
            "GET /prefix/v2/acme/app/tags/list?n=5&ns=registry.test HTTP/1.1",
        ]
    );
    assert_eq!(server.count("accept-encoding: identity\r\n"), 5);
    assert_eq!(server.count(&format!("host: {}\r\n", server.address)), 5);
    assert_eq!(server.count("range:"), 0);
    assert!(seen[..2].iter().all(|head| head.contains(MediaType::MANIFESTS[0]) && head.contains("*/*")));
    assert_eq!(server.connections(), 1, "the connection is used again");
}

#[tokio::test]
async fn a_head_has_a_size_and_no_body() {
    let server = Server::plain(|_| vec![raw("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")]).await;
    let answer = Room::of(&server.url()).tag().await.unwrap();
    assert_eq!((answer.size, answer.digest), (Some(1234), None));
    assert!(answer.body.whole(0).await.unwrap().is_empty());
}

#[tokio::test]
async fn lists_come_with_their_headers() {
    let server = Server::plain(|_| {
        answer("200 OK", &[("Link", "</v2/x>; rel=next"), ("Set-Cookie", "a=b"), ("OCI-Filters-Applied", "x")], "{}")
    })
    .await;
    let answer = Room::of(&server.url()).upstream.pass(&Grant::Anonymous, &repository(), "tags/list").await.unwrap();
    assert_eq!(answer.headers.len(), 2);
    assert_eq!(answer.headers["link"], "</v2/x>; rel=next");
}

#[tokio::test]
async fn nothing_but_lists_is_passed_on() {
    let server = Server::plain(|_| ok("")).await;
    let error =
        Room::of(&server.url()).upstream.pass(&Grant::Anonymous, &repository(), "../../secret").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Forbidden(_)));
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_blob_from_an_offset() {
    let server = Server::plain(|_| answer("206 Partial", &[("Content-Range", "bytes 2-4/5")], "llo")).await;
    let answer = Room::of(&server.url()).blob(2).await.unwrap();
    assert_eq!((answer.offset, answer.size), (2, Some(5)));
    assert_eq!(&*answer.body.whole(5).await.unwrap(), b"llo");
    assert_eq!(server.count("range: bytes=2-\r\n"), 1);
}

#[tokio::test]
async fn a_registry_that_ignores_ranges() {
    let server = Server::plain(|_| ok("hello")).await;
    let answer = Room::of(&server.url()).blob(2).await.unwrap();
    assert_eq!((answer.offset, answer.size), (0, Some(5)));
    assert_eq!(&*answer.body.whole(5).await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_part_that_stops_before_the_blob_does() {
    let server = Server::plain(|_| answer("206 Partial", &[("Content-Range", "bytes 2-3/5")], "ll")).await;
    let mut answer = Room::of(&server.url()).blob(2).await.unwrap();
    assert_eq!(answer.body.frame().await.unwrap().unwrap(), "ll");
    assert_eq!(*answer.body.frame().await.unwrap_err().kind(), ErrorKind::Cut { at: 4 });
    assert_eq!(*answer.body.frame().await.unwrap_err().kind(), ErrorKind::Cut { at: 4 }, "and again");
}

#[tokio::test]
async fn parts_that_lie() {
    for (from, range) in [
        (2, "bytes 1-3/5"),
        (2, "bytes 3-5/6"),
        (2, "bytes 2-3/5"),
        (2, "bytes 2-4/3"),
        (2, "bytes */5"),
        (2, "2-4/5"),
        (2, ""),
        (0, "bytes 0-2/3"),
    ] {
        let server = Server::plain(move |_| answer("206 Partial", &[("Content-Range", range)], "llo")).await;
        let error = Room::of(&server.url()).blob(from).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Protocol(_)), "{range}: {error}");
    }
}

#[tokio::test]
async fn more_than_was_announced() {
    let server = Server::plain(|_| {
        let head = "HTTP/1.1 206 Partial\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes 2-4/5\r\n\r\n";
        vec![raw(head), raw("5\r\nllo!!\r\n0\r\n\r\n")]
    })
    .await;
    let mut answer = Room::of(&server.url()).blob(2).await.unwrap();
    let error = answer.body.frame().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol(_)), "{error}");
}

#[tokio::test]
async fn bytes_behind_the_end_are_none_of_the_body() {
    let server = Server::plain(|_| {
        let mut acts = ok("hello");
        acts.push(raw("world"));
        acts
    })
    .await;
    let room = Room::of(&server.url());
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    assert_eq!(room.bytes().await.unwrap(), b"hello");
    assert_eq!(server.connections(), 2, "and their connection is not used again");
}

#[tokio::test]
async fn cut_short() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let server = Server::plain(move |_| vec![raw(text), Act::Close]).await;
        let mut answer = Room::of(&server.url()).blob(0).await.unwrap();
        assert_eq!(answer.body.frame().await.unwrap().unwrap(), "hello");
        let error = answer.body.frame().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Cut { at: 5 });
        assert_eq!(error.to_string(), format!("{}: ended early, after 5 bytes", server.address));
    }
}

#[tokio::test]
async fn stalled() {
    let server = Server::plain(|_| vec![raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"), Act::Hang]).await;
    let mut answer = Room::of(&server.url()).blob(0).await.unwrap();
    assert_eq!(answer.body.frame().await.unwrap().unwrap(), "hello");
    assert_eq!(*answer.body.frame().await.unwrap_err().kind(), ErrorKind::Stalled(STALL));
    assert_eq!(answer.body.offset(), 5);
}

#[tokio::test]
async fn too_large_for_a_small_body() {
    let server = Server::plain(|_| ok("hello")).await;
    let answer = Room::of(&server.url()).blob(0).await.unwrap();
    assert!(matches!(answer.body.whole(4).await.unwrap_err().kind(), ErrorKind::Protocol(_)));
}
