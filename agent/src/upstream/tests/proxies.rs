//! Proxies: real ones, that connect or ask in our place.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::super::Unreachable;
use super::server::{Ca, Server, answer, ok};
use super::*;
use crate::config::ProxyChoice;

/// A proxy that connects whoever shows the right credentials, and counts.
struct Proxy {
    address: std::net::SocketAddr,
    heads: tokio::sync::watch::Sender<Vec<String>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    async fn start(credentials: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = tokio::sync::watch::Sender::new(Vec::new());
        let log = heads.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(tunnel(stream, credentials, log.clone()));
            }
        });
        Self { address, heads, _tasks: tasks }
    }

    fn choice(&self, credentials: &str) -> Option<ProxyChoice> {
        Some(format!("http://{credentials}{}", self.address).parse().unwrap())
    }

    fn heads(&self) -> Vec<String> {
        self.heads.borrow().clone()
    }
}

async fn tunnel(mut client: TcpStream, credentials: Option<&str>, log: tokio::sync::watch::Sender<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    log.send_modify(|log| log.push(head.clone()));
    if credentials.is_some_and(|credentials| !head.contains(credentials)) {
        client.write_all(b"HTTP/1.1 407 Who?\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        return;
    }
    let target = head.split(' ').nth(1).unwrap();
    match TcpStream::connect(target).await {
        Ok(mut server) => {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
        Err(_) => client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await.unwrap(),
    }
}

#[tokio::test]
async fn https_goes_through_a_tunnel() {
    let ca = Ca::new();
    let storage = Server::tls(&ca, |_| ok("hello")).await;
    let to = storage.url();
    let server = Server::tls(&ca, move |_| answer("307 There", &[("Location", &to)], "")).await;
    // user:p@ss
    let proxy = Proxy::start(Some("Proxy-Authorization: Basic dXNlcjpwQHNz\r\n")).await;
    let ca_files = vec![ca.path().to_owned()];
    let upstream = UpstreamConfig { ca: ca_files.clone(), proxy: proxy.choice("user:p%40ss@"), ..at(&server.url()) };
    assert_eq!(Room::with(nothing, upstream).bytes().await.unwrap(), b"hello");
    let targets: Vec<_> = proxy.heads().iter().map(|head| head.lines().next().unwrap().to_owned()).collect();
    let connect = |to: &Server| format!("CONNECT {} HTTP/1.1", to.address);
    assert_eq!(targets, [connect(&server), connect(&storage)], "where it is sent, too");
    assert_eq!(server.count("proxy-authorization"), 0);

    let upstream = UpstreamConfig { ca: ca_files, proxy: proxy.choice("user:hush@"), ..at(&server.url()) };
    let room = Room::with(nothing, upstream);
    let error = room.blob(0).await.unwrap_err();
    let expected = ErrorKind::Unreachable(Unreachable::ProxyAuthorization(format!("http://{}", proxy.address)));
    assert_eq!(*error.kind(), expected);
    assert!(!error.to_string().contains("hush") && error.to_string().contains("demands authorization"), "{error}");
    assert!(!room.upstream.is_available());
}

#[tokio::test]
async fn plain_http_is_asked_for_by_its_whole_url() {
    let proxy = Server::plain(|head| {
        if head.contains("proxy-authorization: Basic dTpw\r\n") { ok("hello") } else { answer("407 Who?", &[], "") }
    })
    .await;
    let choice = |credentials: &str| Some(format!("http://{credentials}{}", proxy.address).parse().unwrap());
    let upstream = |proxy| UpstreamConfig { insecure: true, proxy, ..at("http://registry.test") };
    // The name has no address here: only the proxy looks it up.
    assert_eq!(Room::with(address::refused, upstream(choice("u:p@"))).bytes().await.unwrap(), b"hello");
    assert!(proxy.seen()[0].starts_with("GET http://registry.test/v2/acme/app/blobs/"), "{}", proxy.seen()[0]);
    let kind = Room::with(address::refused, upstream(choice(""))).kind().await;
    assert!(matches!(kind, ErrorKind::Unreachable(Unreachable::ProxyAuthorization(_))), "{kind:?}");
}

#[tokio::test]
async fn a_proxy_that_is_no_help() {
    let ca = Ca::new();
    let server = Server::tls(&ca, |_| ok("hello")).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::start(None).await;
    for (url, through, part) in [
        (server.url(), Some(format!("http://{nobody}").parse().unwrap()), "refused"),
        (format!("https://{nobody}"), proxy.choice(""), "status 502"),
        (server.url(), Some(format!("https://{}", server.address).parse().unwrap()), "certificate"),
    ] {
        let upstream = UpstreamConfig { insecure: true, proxy: through, ..at(&url) };
        let error = Room::with(address::refused, upstream).blob(0).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unreachable(Unreachable::Proxy { .. })), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn the_guard_holds_behind_a_proxy() {
    let ca = Ca::new();
    let proxy = Proxy::start(None).await;
    for (target, is_forbidden) in [
        ("https://127.0.0.1/", true),
        ("https://[::1]/", true),
        ("https://169.254.169.254/", true),
        ("https://localhost/", true),
        ("https://a.LOCALHOST./", true),
        ("http://registry.test/", true),
        // No names that a certificate could have.
        ("https://127.1/", false),
        ("https://0x7f.1/", false),
        ("https://2130706433/", false),
    ] {
        let server = Server::tls(&ca, move |_| answer("307 There", &[("Location", target)], "")).await;
        let upstream = UpstreamConfig { ca: vec![ca.path().to_owned()], proxy: proxy.choice(""), ..at(&server.url()) };
        let error = Room::with(address::refused, upstream).blob(0).await.unwrap_err();
        assert_eq!(matches!(error.kind(), ErrorKind::Forbidden(_)), is_forbidden, "{target}: {error}");
        let last = proxy.heads().pop().unwrap();
        assert!(last.starts_with(&format!("CONNECT {} ", server.address)), "{target}: {last}");
    }
}
