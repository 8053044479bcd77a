//! What can be seen of the room from outside, and its end.

use crate::upstream::{Grant, Part};
use prometheus_client::encoding::text::encode;

use super::server::{Act, Server, answer, ok, raw};
use super::*;

#[tokio::test]
async fn what_is_counted_and_remembered() {
    let server = Server::plain(|head| match () {
        () if head.starts_with("HEAD") => answer("404 Not Found", &[], ""),
        () if head.contains("range: bytes=2-") => answer("503 Busy", &[], ""),
        () if head.contains("range: bytes=3-") => {
            vec![raw("HTTP/1.1 206 OK\r\nContent-Length: 5\r\nContent-Range: bytes 3-7/8\r\n\r\nhe"), Act::Close]
        }
        () => ok("hello"),
    })
    .await;
    let room = Room::of(&server.url());
    let mut metrics = prometheus_client::registry::Registry::default();
    room.upstreams.metrics().register(&mut metrics);
    assert!(room.upstream.state().last_success.is_none());

    room.tag().await.unwrap_err();
    let state = room.upstream.state();
    assert!(state.last_success.is_some() && state.last_error.is_none(), "no is an answer");
    room.bytes().await.unwrap();
    room.blob(2).await.unwrap_err();
    room.blob(3).await.unwrap().body.whole(100).await.unwrap_err();
    let error = room.upstream.state().last_error.unwrap();
    assert_eq!((error.kind, error.text), ("cut", format!("{}: ended early, after 5 bytes", server.address)));

    // Anybody can invent registries: they share a label.
    let stranger = room.upstreams.of(&"127.0.0.1:1".parse().unwrap());
    stranger[0].blob(&Grant::Anonymous, &repository(), &digest(), Part::from(0)).await.unwrap_err();

    let mut text = String::new();
    encode(&mut text, &metrics).unwrap();
    let host = server.address;
    for line in [
        format!("larder_upstream_requests_total{{upstream=\"{host}\",result=\"ok\"}} 2"),
        format!("larder_upstream_requests_total{{upstream=\"{host}\",result=\"not_found\"}} 1"),
        format!("larder_upstream_requests_total{{upstream=\"{host}\",result=\"server\"}} 1"),
        "larder_upstream_requests_total{upstream=\"other\",result=\"forbidden\"} 1".to_owned(),
        format!("larder_upstream_errors_total{{upstream=\"{host}\",kind=\"cut\"}} 1"),
        format!("larder_upstream_received_bytes_total{{upstream=\"{host}\"}} 7"),
        format!("larder_upstream_request_duration_seconds_count{{upstream=\"{host}\"}} 3"),
    ] {
        assert!(text.contains(&line), "{line} is not in:\n{text}");
    }
}

#[tokio::test]
async fn chains() {
    let upstreams = Upstreams::new(&Config::default()).unwrap();
    let hub = upstreams.of(&Registry::docker_hub());
    assert_eq!((hub.len(), hub[0].name()), (1, "registry-1.docker.io"));
    assert!(Arc::ptr_eq(&hub[0], &upstreams.of(&Registry::docker_hub())[0]), "kept, with what it learned");
    for number in 0..1000 {
        assert_eq!(upstreams.of(&format!("r{number}.test").parse().unwrap()).len(), 1);
        let _ = upstreams.of(&Registry::docker_hub());
    }
    assert!(Arc::ptr_eq(&hub[0], &upstreams.of(&Registry::docker_hub())[0]), "what is used stays");
    assert_eq!(upstreams.all().len(), 256);

    let two = ["https://a.test", "https://b.test/hub"];
    let configured = two.map(at).into();
    let upstreams = Upstreams::new(&config(configured)).unwrap();
    let names: Vec<_> = upstreams.of(&registry()).iter().map(|u| u.url().to_string()).collect();
    assert_eq!(names, two);
}

#[tokio::test]
async fn closing_ends_every_task() {
    let server = Server::plain(|_| vec![raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"), Act::Hang]).await;
    let room = Room::of(&server.url());
    let mut answer = room.blob(0).await.unwrap();
    assert_eq!(answer.body.frame().await.unwrap().unwrap(), "hello");
    assert!(room.upstreams.running() > 0);
    room.upstreams.close().await;
    assert_eq!(room.upstreams.running(), 0);
    assert_eq!(*answer.body.frame().await.unwrap_err().kind(), ErrorKind::Cut { at: 5 });
    assert!(room.blob(0).await.is_err());
}
