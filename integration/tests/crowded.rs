//! More blobs at once than an upstream bears connections: each of them comes, and tags are answered meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::{try_join, try_join_all};
use http::StatusCode;
use larder_integration::{Agent, AgentConfig, FaultRegistry, Folder, Image, Puller, Upstream, until};

use crate::support::run;

const MEBIBYTE: u64 = 1 << 20;

#[test]
fn each_of_many_blobs_comes() {
    run(crowd("[]", false));
}

#[test]
fn each_of_many_blobs_comes_where_nothing_is_stored() {
    run(crowd("[\"reg.test/*\"]", false));
}

#[test]
fn each_of_many_blobs_comes_and_none_of_two_upstreams_is_blamed() {
    run(crowd("[]", true));
}

/// Six blobs, of which each takes longer than an answer may, and two connections for them.
async fn crowd(ignored: &str, has_second: bool) -> Result<()> {
    let (folder, registry, second) = (Folder::new()?, FaultRegistry::start().await?, FaultRegistry::start().await?);
    let images: Vec<Image> = (0..6).map(|seed| Image::opaque(20 + seed, 6 << 20)).collect();
    for (n, image) in images.iter().enumerate() {
        registry.add(image, "acme/app", &format!("v{n}"));
        second.add(image, "acme/app", &format!("v{n}"));
    }
    registry.limit_each_connection(Some(MEBIBYTE));
    second.limit_each_connection(Some(MEBIBYTE));
    let mut config = AgentConfig::without_containerd(folder.path());
    let mut upstreams = vec![Upstream::insecure(&registry.url()).max_connections(3)];
    if has_second {
        upstreams.push(Upstream::insecure(&second.url()));
    }
    config.upstreams("reg.test", upstreams).set("cache", "ignore", ignored).set_text("mirror", "header_timeout", "2s");
    let agent = Agent::start(&folder.path().join("agent"), &config).await?;
    let puller = Puller::new(&agent, "reg.test", None);

    let blobs = try_join_all(images.iter().map(async |image| {
        let layer = image.largest();
        let reply = puller.get("acme/app", &format!("blobs/{}", layer.digest)).await?.expect(StatusCode::OK)?;
        ensure!(reply.body == layer.bytes, "{} of {} bytes: {:?}", reply.body.len(), layer.bytes.len(), reply.cut);
        ensure!(reply.to_head < Duration::from_secs(15), "the head came after {:?}", reply.to_head);
        Ok(())
    }));
    let tags = async {
        until("as many blobs are on their way as may be", Duration::from_secs(10), async || {
            (registry.most_at_once() >= 2).then_some(())
        })
        .await?;
        for (n, image) in images.iter().enumerate() {
            let reply = puller.head("acme/app", &format!("manifests/v{n}")).await?.expect(StatusCode::OK)?;
            ensure!(reply.header("docker-content-digest") == image.root().digest, "{reply:?}");
            ensure!(reply.header("warning").is_empty(), "a stale answer: {reply:?}");
            ensure!(reply.to_head < Duration::from_secs(1), "v{n} was answered after {:?}", reply.to_head);
        }
        Ok(())
    };
    try_join(blobs, tags).await.with_context(|| format!("{:#?}", registry.requests()))?;

    // The registry learns a moment late that a client has left: of each connection.
    ensure!(registry.most_at_once() <= 2 * 2, "{} bodies at once", registry.most_at_once());
    ensure!(!has_second || second.most_at_once() > 0, "the other has room, and wasn't asked");
    let metrics = agent.metrics().await?;
    for blame in ["larder_upstream_errors_total", "larder_upstream_breaker_transitions_total"] {
        ensure!(metrics.sum(blame, &[]) == 0.0, "{blame}: {}", metrics.sum(blame, &[]));
    }
    Ok(())
}

/// One blob by as many connections as there may be; then another one is asked for.
#[test]
fn a_blob_by_several_connections_leaves_one_to_the_next() {
    run(async {
        let (folder, registry) = (Folder::new()?, FaultRegistry::start().await?);
        let (large, next) = (Image::opaque(30, 96 << 20), Image::opaque(31, 6 << 20));
        registry.add(&large, "acme/app", "large");
        registry.add(&next, "acme/app", "next");
        registry.limit_each_connection(Some(2 * MEBIBYTE));
        let mut config = AgentConfig::without_containerd(folder.path());
        config.upstreams("reg.test", vec![Upstream::insecure(&registry.url()).max_connections(5)]);
        // A piece of one connection takes longer.
        config.set_text("mirror", "header_timeout", "2s");
        let agent = Agent::start(&folder.path().join("agent"), &config).await?;
        let puller = Puller::new(&agent, "reg.test", None);
        let path = |image: &Image| format!("blobs/{}", image.largest().digest);

        let whole = async { puller.get("acme/app", &path(&large)).await?.expect(StatusCode::OK) };
        let beside = async {
            until("the first has all connections", Duration::from_secs(20), async || {
                (registry.most_at_once() >= 4).then_some(())
            })
            .await?;
            puller.get("acme/app", &path(&next)).await?.expect(StatusCode::OK)
        };
        let (whole, beside) = try_join(whole, beside).await?;
        ensure!(beside.to_head < Duration::from_secs(3), "it began after {:?}", beside.to_head);
        ensure!(beside.body == next.largest().bytes && whole.body == large.largest().bytes);
        ensure!(registry.most_at_once() <= 4 + 1, "{} bodies at once", registry.most_at_once());
        Ok(())
    });
}
