//! Parts of blobs: read far ahead, by many at once, through many connections; and nothing comes twice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use larder_integration::{
    Agent, AgentConfig, Fault, FaultRegistry, Folder, Image, NodeBuilder, Puller, Release, Upstream, When, free_port,
    until,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::{Case, run};

const MEBIBYTE: u64 = 1 << 20;

/// What was under way when a part was asked for may be sent again: no more than a chunk for each part.
const SLACK: u64 = MEBIBYTE;

async fn agent(folder: &Folder, upstream: Upstream) -> Result<Agent> {
    let mut config = AgentConfig::without_containerd(folder.path());
    config.upstreams("reg.test", vec![upstream]);
    Agent::start(&folder.path().join("agent"), &config).await
}

/// The whole blob takes more than ten seconds; its end is read at once, as lazy-loading snapshotters read it.
#[test]
fn a_part_far_ahead_comes_before_all_that_lies_before_it() {
    run(async {
        let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::opaque(1, 96 << 20));
        registry.add(&image, "acme/app", "v1");
        registry.limit_each_connection(Some(8 << 20));
        // One connection for the blob, one for what is read ahead, and one that is kept for tags.
        let agent = agent(&folder, Upstream::insecure(&registry.url()).max_connections(3)).await?;
        let (puller, layer) = (Puller::new(&agent, "reg.test", None), image.largest());
        let path = format!("blobs/{}", layer.digest);

        let whole = async { puller.get("acme/app", &path).await?.expect(StatusCode::OK) };
        let parts = async {
            until("the blob is on its way", Duration::from_secs(10), async || {
                (registry.sent(&layer.digest) > 2 * MEBIBYTE).then_some(())
            })
            .await?;
            for from in [90 << 20, 60 << 20, 75 << 20] {
                let begun = Instant::now();
                let range = format!("bytes={from}-{}", from + 99_999);
                let reply = puller.get_range("acme/app", &path, &range).await?.expect(StatusCode::PARTIAL_CONTENT)?;
                ensure!(reply.body == layer.bytes.slice(from..from + 100_000), "{range}: wrong bytes");
                ensure!(begun.elapsed() < Duration::from_secs(3), "{range} came after {:?}", begun.elapsed());
            }
            ensure!(registry.sent(&layer.digest) < 64 * MEBIBYTE, "all came before the parts");
            Ok(())
        };
        let (whole, parts) = tokio::join!(whole, parts);
        parts?;
        ensure!(whole?.body == layer.bytes);
        let again = registry.sent_again(layer);
        ensure!(again <= 4 * SLACK, "{again} bytes were sent again: {:#?}", registry.requests());
        Ok(())
    });
}

/// A blob of which nobody ever asked for all.
#[test]
fn scattered_parts_alone_are_answered() {
    run(async {
        let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::opaque(2, 64 << 20));
        registry.add(&image, "acme/app", "v1");
        registry.limit_each_connection(Some(8 << 20));
        let agent = agent(&folder, Upstream::insecure(&registry.url())).await?;
        let (puller, layer) = (Puller::new(&agent, "reg.test", None), image.largest());
        let path = format!("blobs/{}", layer.digest);
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..20 {
            let from = random.random_range(0..layer.bytes.len() - 300_000);
            let to = from + random.random_range(1..300_000);
            let begun = Instant::now();
            let reply = puller.get_range("acme/app", &path, &format!("bytes={from}-{}", to - 1)).await?;
            ensure!(reply.expect(StatusCode::PARTIAL_CONTENT)?.body == layer.bytes.slice(from..to));
            ensure!(begun.elapsed() < Duration::from_secs(3), "{from}-{to} came after {:?}", begun.elapsed());
        }
        ensure!(registry.sent_again(layer) <= SLACK, "{} bytes were sent again", registry.sent_again(layer));
        Ok(())
    });
}

/// 64 MiB at 2 MiB/s would take 32 s by one connection.
#[test]
fn an_upstream_that_limits_each_connection_is_asked_by_several() {
    run(async {
        let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::opaque(3, 64 << 20));
        registry.add(&image, "acme/app", "v1");
        registry.limit_each_connection(Some(2 << 20));
        let agent = agent(&folder, Upstream::insecure(&registry.url())).await?;
        let (puller, layer) = (Puller::new(&agent, "reg.test", None), image.largest());
        let reply = puller.get("acme/app", &format!("blobs/{}", layer.digest)).await?.expect(StatusCode::OK)?;
        ensure!(reply.body == layer.bytes);
        ensure!(reply.to_end < Duration::from_secs(16), "it took {:?}", reply.to_end);
        ensure!(registry.most_at_once() > 2, "{} connections were used", registry.most_at_once());
        ensure!(registry.sent_again(layer) <= SLACK, "{} bytes were sent again", registry.sent_again(layer));
        Ok(())
    });
}

#[test]
fn no_more_connections_are_used_than_the_upstream_allows() {
    run(async {
        let (folder, registry) = (Folder::new()?, FaultRegistry::start().await?);
        let images = [Image::opaque(4, 24 << 20), Image::opaque(5, 24 << 20)];
        images.iter().for_each(|image| registry.add(image, "acme/app", "v1"));
        registry.limit_each_connection(Some(4 << 20));
        let agent = agent(&folder, Upstream::insecure(&registry.url()).max_connections(3)).await?;
        let puller = Puller::new(&agent, "reg.test", None);
        let pull = async |image: &Image| {
            let path = format!("blobs/{}", image.largest().digest);
            let reply = puller.get("acme/app", &path).await?.expect(StatusCode::OK)?;
            ensure!(reply.body == image.largest().bytes);
            Ok(())
        };
        let (one, two) = tokio::join!(pull(&images[0]), pull(&images[1]));
        one.and(two)?;
        // The registry learns a moment late that a client has left. Without a limit it would be more than ten.
        ensure!(registry.most_at_once() <= 3 + 1, "{} were used", registry.most_at_once());
        Ok(())
    });
}

/// Ranges at once where the upstream knows none: one connection, and all bytes once.
#[test]
fn an_upstream_without_ranges_is_read_once() {
    run(async {
        let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::opaque(6, 32 << 20));
        registry.add(&image, "acme/app", "v1");
        registry.limit_each_connection(Some(8 << 20));
        registry.fault(When::get(image.largest()), Fault::NoRange);
        let agent = agent(&folder, Upstream::insecure(&registry.url())).await?;
        let (puller, layer) = (Puller::new(&agent, "reg.test", None), image.largest());
        let reply = puller.get("acme/app", &format!("blobs/{}", layer.digest)).await?.expect(StatusCode::OK)?;
        ensure!(reply.body == layer.bytes);
        // One attempt at a range finds it out.
        ensure!(registry.sent_again(layer) <= 4 * SLACK, "{} bytes were sent again", registry.sent_again(layer));
        Ok(())
    });
}

/// containerd reads a layer in pieces, several at once, each from a request without an end that it leaves.
mod containerd_reads_pieces_at_once {
    use super::*;

    #[test]
    fn containerd_sid() {
        run(pieces(Case { release: Release::Sid, tls: true }));
    }

    #[test]
    fn containerd_sid_over_plain_http() {
        run(pieces(Case { release: Release::Sid, tls: false }));
    }

    #[test]
    #[cfg_attr(not(newest_containerd), ignore = "the newest containerd isn't built: Go isn't here")]
    fn containerd_newest() {
        run(pieces(Case { release: Release::Newest, tls: true }));
    }
}

/// The pull after one that got wrong bytes succeeds at once, though its pieces begin where those of the other one ended.
mod pieces_after_wrong_ones_are_given {
    use super::*;

    #[test]
    fn containerd_sid() {
        run(pieces_after_wrong_ones(Case { release: Release::Sid, tls: true }));
    }

    #[test]
    #[cfg_attr(not(newest_containerd), ignore = "the newest containerd isn't built: Go isn't here")]
    fn containerd_newest() {
        run(pieces_after_wrong_ones(Case { release: Release::Newest, tls: true }));
    }
}

async fn pieces_after_wrong_ones(case: Case) -> Result<()> {
    let (first, second, image) =
        (FaultRegistry::start().await?, FaultRegistry::start().await?, Image::one_layer(9, 32));
    for registry in [&first, &second] {
        registry.add(&image, "acme/app", "v1");
    }
    first.fault(When::get(image.largest()), Fault::WrongByte(11 << 20));
    let nowhere = format!("server = \"http://127.0.0.1:{}\"\n", free_port()?);
    let mut builder = in_pieces(case.builder()?.hosts("reg.test", &nowhere)?);
    builder.agent.registry("reg.test", &[&first.url(), &second.url()]);
    let node = builder.start().await?;
    ensure!(node.containerd.pull("reg.test/acme/app:v1").await.is_err(), "the wrong byte wasn't met");
    node.containerd.pull("reg.test/acme/app:v1").await.context("the pull after")?;
    Ok(())
}

/// Its containerd reads layers in pieces, several at once.
fn in_pieces(mut builder: NodeBuilder) -> NodeBuilder {
    // The one is read by local pulls, the other by the transfer service.
    builder.containerd.images = format!("concurrent_layer_fetch_buffer = {}", 4 * MEBIBYTE);
    builder.containerd.tables =
        format!("[plugins.\"io.containerd.transfer.v1.local\"]\nconcurrent_layer_fetch_buffer = {}\n", 4 * MEBIBYTE);
    builder
}

async fn pieces(case: Case) -> Result<()> {
    let (registry, image) = (FaultRegistry::start().await?, Image::one_layer(8, 64));
    registry.add(&image, "acme/app", "v1");
    registry.limit_each_connection(Some(16 << 20));
    let node = in_pieces(case.builder()?.registry("reg.test", &registry.url())?).start().await?;
    let layer = image.largest();
    for round in ["cold", "warm"] {
        let begun = Instant::now();
        node.containerd.wipe().await?;
        node.containerd.pull("reg.test/acme/app:v1").await.context(round)?;
        ensure!(begun.elapsed() < Duration::from_secs(20), "{round}: took {:?}", begun.elapsed());
        crate::support::ensure_only_the_agent_asked(&registry)?;
        ensure!(registry.sent_again(layer) <= 4 * SLACK, "{} bytes were sent again", registry.sent_again(layer));
    }
    // It did read in pieces.
    let parts = node.agent()?.metrics().await?.sum("larder_mirror_requests_total", &["code=\"206\""]);
    ensure!(parts > 4.0, "containerd asked for {parts} parts");
    Ok(())
}
