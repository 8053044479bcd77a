//! The mirror's port, asked by hand: what containerd never sends as well as what it does.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use larder_integration::{FaultRegistry, Http, Image, Node, Release};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::run;

async fn node(registry: &FaultRegistry) -> Result<Node> {
    Node::builder(Release::Bookworm)?.registry("reg.test", &registry.url())?.start().await
}

#[test]
fn every_request_of_the_pull_workflow_is_answered() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let image = Image::one_layer(1, 6);
        registry.add(&image, "acme/app", "v1");
        let node = node(&registry).await?;
        let (http, base) = (Http::new(), node.agent()?.mirror());
        let root = image.root();

        ensure!(http.get(&format!("{base}/v2/")).await?.status == 200);
        for (how, name) in [("tag", "v1"), ("digest", &root.digest)] {
            let url = format!("{base}/v2/acme/app/manifests/{name}?ns=reg.test");
            let reply = http.get(&url).await?.expect(http::StatusCode::OK)?;
            ensure!(reply.body == root.bytes, "by {how}");
            for reply in [reply, http.head(&url).await?.expect(http::StatusCode::OK)?] {
                ensure!(reply.header("content-type") == root.media_type, "by {how}: {reply:?}");
                ensure!(reply.header("docker-content-digest") == root.digest, "by {how}: {reply:?}");
                ensure!(reply.header("content-length") == root.bytes.len().to_string(), "by {how}: {reply:?}");
            }
        }
        for blob in image.blobs() {
            let url = format!("{base}/v2/acme/app/blobs/{}?ns=reg.test", blob.digest);
            let head = http.head(&url).await?.expect(http::StatusCode::OK)?;
            ensure!(head.header("content-length") == blob.bytes.len().to_string());
            ensure!(http.get(&url).await?.body == blob.bytes);
        }
        // The registry's name in the path.
        ensure!(http.get(&format!("{base}/v2/reg.test/acme/app/manifests/v1")).await?.body == root.bytes);
        // What isn't a blob passes through.
        let tags =
            http.get(&format!("{base}/v2/acme/app/tags/list?ns=reg.test")).await?.expect(http::StatusCode::OK)?;
        ensure!(tags.body == r#"{"name":"acme/app","tags":["v1"]}"#, "{:?}", tags.body);
        let referrers = format!("{base}/v2/acme/app/referrers/{}?ns=reg.test", root.digest);
        ensure!(http.get(&referrers).await?.status == 200);
        Ok(())
    });
}

#[test]
fn ranges_are_met_held_or_not() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let (held, arriving) = (Image::one_layer(2, 6), Image::one_layer(3, 6));
        registry.add(&held, "acme/held", "v1");
        registry.add(&arriving, "acme/arriving", "v1");
        let node = node(&registry).await?;
        node.containerd.pull("reg.test/acme/held:v1").await?;
        let http = Http::new();
        for (repository, image) in [("acme/arriving", &arriving), ("acme/held", &held)] {
            let blob = image.largest();
            let url = format!("{}/v2/{repository}/blobs/{}?ns=reg.test", node.agent()?.mirror(), blob.digest);
            let length = blob.bytes.len();
            let cases = [
                ("bytes=5000000-".to_owned(), 5_000_000..length),
                ("bytes=0-0".to_owned(), 0..1),
                ("bytes=100-4999999".to_owned(), 100..5_000_000),
                ("bytes=-10".to_owned(), length - 10..length),
                (format!("bytes=10-{}", length * 2), 10..length),
            ];
            for (range, expected) in cases {
                let reply = http.get_range(&url, &range).await?.expect(http::StatusCode::PARTIAL_CONTENT)?;
                ensure!(reply.body == blob.bytes.slice(expected.clone()), "{repository} {range}");
                let content_range = format!("bytes {}-{}/{length}", expected.start, expected.end - 1);
                ensure!(reply.header("content-range") == content_range, "{repository} {range}: {reply:?}");
            }
            let reply = http.get_range(&url, &format!("bytes={length}-")).await?;
            ensure!(reply.status == 416 && reply.header("content-range") == format!("bytes */{length}"), "{reply:?}");
        }
        Ok(())
    });
}

#[test]
fn nothing_else_is_answered() {
    run(async {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::tiny(4), "acme/app", "v1");
        let node = node(&registry).await?;
        let (http, base) = (Http::new(), node.agent()?.mirror());
        let url = format!("{base}/v2/acme/app/manifests/v1?ns=reg.test");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            ensure!(http.send(method.clone(), &url, &[], Bytes::new()).await?.status == 405, "{method}");
        }
        let long = "a".repeat(300);
        for path in [
            "/v2/../../etc/passwd",
            "/v2/acme/app/blobs/sha256:../../../../etc/passwd?ns=reg.test",
            "/v2/acme/app/blobs/sha256:abc?ns=reg.test",
            "/v2/acme/%2e%2e/manifests/v1?ns=reg.test",
            "/v2/acme%2fapp/manifests/v1?ns=reg.test",
            "/v2/ACME/app/manifests/v1?ns=reg.test",
            "/v2/acme/app/manifests/v1?ns=../x",
            "/v2/acme/app/manifests/v1?ns=user@reg.test",
            "/v2/acme/app/manifests/v1?ns=",
            "/v2/acme/app/manifests/v1?ns=reg.test&ns=other.test",
            &format!("/v2/{long}/manifests/v1?ns=reg.test"),
            "/v2/acme/app/manifests/?ns=reg.test",
            "/metrics",
            "/",
        ] {
            let status = raw(&node, path).await?;
            ensure!((400..500).contains(&status), "{path}: {status}");
        }
        ensure!(
            registry.requests().iter().all(|request| !request.target.contains("manifests")),
            "{:?}",
            registry.requests()
        );
        Ok(())
    });
}

/// Loopback, link-local and private names of nobody's configuration are not contacted.
#[test]
fn nobody_can_use_it_to_reach_what_they_should_not() {
    run(async {
        let registry = FaultRegistry::start().await?;
        // Whoever is contacted there has been reached, whatever is said then.
        let (unnamed, port) = unnamed()?;
        let node = node(&registry).await?;
        let (http, base) = (Http::new(), node.agent()?.mirror());
        for name in [
            format!("127.0.0.1:{port}"),
            format!("127.1.2.3:{port}"),
            format!("localhost:{port}"),
            "169.254.169.254".to_owned(),
            format!("[::1]:{port}"),
        ] {
            let url = format!("{base}/v2/acme/app/manifests/v1?ns={name}");
            let begun = std::time::Instant::now();
            let reply = http.get(&url).await?;
            ensure!(!reply.status.is_success(), "{name}: {reply:?}");
            ensure!(begun.elapsed() < Duration::from_secs(5), "{name}: took {:?}", begun.elapsed());
        }
        for listener in &unnamed {
            let contacted = listener.accept();
            ensure!(
                contacted.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
                "contacted: {contacted:?}"
            );
        }
        Ok(())
    });
}

/// Listeners on every loopback address, at a port of nobody's configuration.
fn unnamed() -> Result<(Vec<TcpListener>, u16)> {
    let four = TcpListener::bind("0.0.0.0:0")?;
    let port = four.local_addr()?.port();
    // A machine without IPv6 has no such address to contact.
    let listeners: Vec<_> = std::iter::once(four).chain(TcpListener::bind(("::1", port))).collect();
    listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
    Ok((listeners, port))
}

/// Sends a path as it is, which a client library wouldn't; returns the status.
async fn raw(node: &Node, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", node.agent()?.mirror_port())).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut reply = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut reply)).await??;
    let reply = String::from_utf8_lossy(&reply);
    Ok(reply.split(' ').nth(1).unwrap_or_default().parse()?)
}
