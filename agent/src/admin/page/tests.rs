use std::net::Ipv4Addr;

use futures_util::FutureExt as _;
use maud::{Markup, html};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::admin::view::images::tests::{at, health, known};
use crate::admin::view::{self, Down, Quota, Upstream};
use crate::containerd::canary::{Report, Verdict as CanaryVerdict};
use crate::health::{Status as Said, Verdict};
use crate::keep::{Catalog, Why};
use crate::peers::ShownPart;

fn sight() -> Sight {
    let images = [
        ("docker.io/library/nginx:1.29", Said::Available, Verdict { protected: true, copies: 3, ..Verdict::default() }),
        ("ghcr.io/acme/gone:v1", Said::NotFound, Verdict { lost: true, ..Verdict::default() }),
        ("ghcr.io/acme/moved:v1", Said::Available, Verdict { protected: true, drifted: true, ..Verdict::default() }),
        ("reg.corp:5000/team/bare:v2", Said::Unreachable, Verdict::default()),
    ];
    let (mut catalog, mut report) =
        (Catalog { is_complete: true, ..Catalog::default() }, crate::health::Report::default());
    for (name, status, verdict) in images {
        let known = known(name, Why::InUse);
        let mut health = health(&known, status, verdict);
        health.checks[0].remark = Some("<script>alert(1)</script>".to_owned());
        report.images.push(Arc::new(health));
        catalog.images.push(Arc::new(known));
    }
    let status = Status {
        version: "0.1.0".to_owned(),
        pid: 1,
        uptime_seconds: 3_600,
        resident_bytes: 1,
        mirror: view::Mirror { listen: "127.0.0.1:7439".parse().unwrap(), tls: true, requests: 12 },
        containerd: "/run/containerd/containerd.sock".into(),
        canary: Some(Report {
            verdict: CanaryVerdict::Unused { pull_error: "a \"quoted\" & odd error".to_owned() },
            at: 1_767_225_600,
            took: std::time::Duration::from_secs(1),
        }),
        hosts: None,
        adopted: Vec::new(),
        cache: view::Cache {
            dir: "/var/lib/larder".into(),
            writable: true,
            blobs: 4,
            bytes: 10 << 30,
            arriving_bytes: 0,
            max_bytes: None,
            max_disk_percent: 75,
            disk_size_bytes: Some(100 << 30),
            disk_used_bytes: Some(60 << 30),
        },
        transfers: Vec::new(),
        upstreams: vec![Upstream {
            registry: "docker.io".parse().unwrap(),
            url: "https://mirror.corp".to_owned(),
            last_success: Some(at("2026-01-01T00:00:00Z")),
            last_error: None,
            down: Some(Down { since: at("2026-01-01T00:30:00Z"), reason: "connection refused".to_owned() }),
            rests_until: None,
            quota: Some(Quota { limit: 100, remaining: 7 }),
        }],
    };
    Sight {
        host: Some("node-1".to_owned()),
        now: at("2026-01-01T01:00:00Z"),
        status,
        images: Images::of(&catalog, &report),
        peers: ShownPart::Off,
        flows: (0..61)
            .map(|minute| Minute { end: at("2026-01-01T00:00:00Z"), bytes: [minute << 20, 0, 1, 0, 3 << 20] })
            .collect(),
    }
}

#[test]
fn it_says_what_there_is_and_escapes_it() {
    let text = render::page(&sight()).into_string();
    for part in [
        "Larder on node-1",
        "✕ lost",
        "✕ not protected",
        "↷ drifted",
        "a &quot;quoted&quot; &amp; odd error",
        "&lt;script&gt;alert(1)",
        "✕ down",
        "7 of 100",
        "upstream <strong>183.0MiB</strong>",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("<script"));
    let order: Vec<usize> =
        ["acme/gone", "team/bare", "acme/moved", "library/nginx"].map(|name| text.find(name).unwrap()).to_vec();
    assert!(order.is_sorted(), "the worst comes first: {order:?}");
}

#[test]
fn nothing_in_it_needs_anything_else() {
    let text = render::page(&sight()).into_string();
    for wrong in ["style=\"", "onclick", "<script", "<img", "url(", "@import", "src="] {
        assert!(!text.contains(wrong), "{wrong} in {text}");
    }
    assert_eq!(text.matches("href=").count(), 1, "only the icon that there isn't");
}

#[test]
fn a_picture_of_nothing() {
    let empty: Markup = html! { (picture::hour(&[])) };
    assert!(empty.into_string().contains("nothing was pulled"));
    let little = Minute { end: Timestamp::UNIX_EPOCH, bytes: [u64::MAX / 8, 0, 1, 1, 1] };
    let drawn = picture::hour(&[little]).into_string();
    assert!(!drawn.contains("y=\"-") && drawn.matches("<rect").count() == 4 + 5, "{drawn}");
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn only_who_names_this_machine_sees_it() {
    let page = Page::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let (address, stop) = (page.local_addr().unwrap(), CancellationToken::new());
    let look: Look = Arc::new(|| async { sight() }.boxed());
    let serving = tokio::spawn(page.serve(look, stop.clone()));
    let with = async |method: &str, path: &str, host: &str| {
        ask(address, &format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    };
    let good = with("GET", "/", "localhost:7440").await;
    assert!(good.starts_with("HTTP/1.1 200 ") && good.contains("Larder on node-1"), "{good}");
    assert!(good.contains("content-security-policy: default-src 'none'; style-src 'sha256-"), "{good}");
    let head = with("HEAD", "/", "127.0.0.1").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    for (method, path, host, status) in [
        ("GET", "/", "evil.test", "421"),
        ("GET", "/", "evil.test:7440", "421"),
        ("POST", "/", "localhost", "405"),
        ("GET", "/metrics", "localhost", "404"),
    ] {
        let reply = with(method, path, host).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path} for {host}: {reply}");
        assert!(!reply.contains("node-1"));
    }
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn it_is_on_loopback_alone() {
    let error = Page::bind("0.0.0.0:0".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("not on loopback"), "{error}");
}
