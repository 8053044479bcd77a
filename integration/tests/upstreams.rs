//! Upstreams as they are configured, and what is remembered of how they behaved.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use http::StatusCode;
use larder_integration::{
    Agent, AgentConfig, Fault, FaultRegistry, Folder, Image, Proxy, Puller, Transport, Upstream, When, until,
};

use crate::support::run;

const LARGE: usize = 64 << 20;

/// An authority to trust, a client certificate, a header, a path, and a proxy that wants a password.
#[test]
fn an_upstream_is_reached_as_the_configuration_says() {
    run(async {
        let (folder, registry, proxy) =
            (Folder::new()?, FaultRegistry::start_over(Transport::Mutual).await?, Proxy::start().await?);
        let file = |name: &str, content: &str| -> Result<PathBuf> {
            let path = folder.path().join(name);
            std::fs::write(&path, content)?;
            Ok(path)
        };
        let image = Image::opaque(1, LARGE);
        registry.add(&image, "acme/app", "v1");
        proxy.demand("me", "pass:word", 0);
        let (certificate, key) = registry.client_certificate();
        let (ca, certificate, key) =
            (file("ca.pem", registry.ca())?, file("client.pem", certificate)?, file("client.key", key)?);
        let plain = Upstream::new(&format!("{}/hub", registry.url())).ca(&ca);
        let whole = plain.clone().client(&certificate, &key).header("X-Team", "builds");
        let mut config = AgentConfig::without_containerd(folder.path());
        config
            .upstreams("whole.test", vec![whole.clone().proxy(&proxy.url_as("me", "pass%3Aword"))])
            .upstreams("nobody.test", vec![plain.proxy("none")])
            .upstreams("refused.test", vec![whole.proxy(&proxy.url())]);
        let agent = Agent::start(&folder.path().join("agent"), &config).await?;

        let puller = Puller::new(&agent, "whole.test", None);
        let layer = image.largest();
        let reply = puller.get("acme/app", &format!("blobs/{}", layer.digest)).await?.expect(StatusCode::OK)?;
        ensure!(reply.body == layer.bytes);
        let requests = registry.requests();
        ensure!(requests.iter().all(|request| request.header("x-team") == Some("builds")), "{requests:?}");
        ensure!(requests.iter().all(|request| request.target.starts_with("/hub/v2/")), "{requests:?}");
        ensure!(proxy.requests().iter().any(|request| request.method == "CONNECT"));

        let before = registry.requests().len();
        for name in ["nobody.test", "refused.test"] {
            let reply = Puller::new(&agent, name, None).head("acme/app", "manifests/v1").await?;
            ensure!(!reply.status.is_success(), "{name}: {reply:?}");
        }
        ensure!(registry.requests().len() == before);
        ensure!(proxy.has_refused());
        Ok(())
    });
}

/// HTTP/2 without faults: what the faults of it take away.
#[test]
fn an_upstream_that_speaks_http2_is_read() {
    run(async {
        let (folder, registry) = (Folder::new()?, FaultRegistry::start_over(Transport::Http2).await?);
        let image = Image::opaque(1, LARGE);
        registry.add(&image, "acme/app", "v1");
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, registry.ca())?;
        let mut config = AgentConfig::without_containerd(folder.path());
        config.upstreams("reg.test", vec![Upstream::new(&registry.url()).ca(&ca)]);
        let agent = Agent::start(&folder.path().join("agent"), &config).await?;
        let puller = Puller::new(&agent, "reg.test", None);
        puller.head("acme/app", "manifests/v1").await?.expect(StatusCode::OK)?;
        let path = format!("blobs/{}", image.largest().digest);
        let reply = puller.get("acme/app", &path).await?.expect(StatusCode::OK)?;
        ensure!(reply.body == image.largest().bytes);
        Ok(())
    });
}

/// While it is down, nobody asks it but the probe; back again, it is the first again.
#[test]
fn a_dead_upstream_is_asked_again_when_it_is_back() {
    run(async {
        let (folder, mut first, second) =
            (Folder::new()?, FaultRegistry::start().await?, FaultRegistry::start().await?);
        let image = Image::tiny(1);
        first.add(&image, "acme/app", "v1");
        second.add(&image, "acme/app", "v1");
        let agent = agent(&folder, &[&first, &second]).await?;
        let puller = Puller::new(&agent, "reg.test", None);
        first.refuse();
        for _ in 0..20 {
            let reply = puller.head("acme/app", "manifests/v1").await?.expect(StatusCode::OK)?;
            ensure!(reply.to_head < Duration::from_secs(2), "{reply:?}");
        }
        ensure!(second.count("HEAD", "/manifests/") >= 20);
        until("the port is free", Duration::from_secs(5), async || first.accept().ok()).await?;
        until("the first is asked again", Duration::from_secs(15), async || {
            puller.head("acme/app", "manifests/v1").await.ok()?;
            (first.count("HEAD", "/manifests/") > 0).then_some(())
        })
        .await
    });
}

/// 429 is never passed on, and who says it is left alone.
#[test]
fn an_upstream_that_says_429_rests() {
    run(async {
        let (folder, first, second) = (Folder::new()?, FaultRegistry::start().await?, FaultRegistry::start().await?);
        let image = Image::tiny(1);
        second.add(&image, "acme/app", "v1");
        first.fault(When::any(), Fault::status_with(429, "retry-after", "600"));
        let agent = agent(&folder, &[&first, &second]).await?;
        let puller = Puller::new(&agent, "reg.test", None);
        for _ in 0..10 {
            puller.head("acme/app", "manifests/v1").await?.expect(StatusCode::OK)?;
        }
        ensure!(first.requests().len() == 1, "{:?}", first.requests());
        // As the last resort it is asked even so: it may have come round.
        second.fault(When::any(), Fault::status(503));
        first.heal();
        first.add(&Image::tiny(2), "acme/new", "v1");
        puller.head("acme/new", "manifests/v1").await?.expect(StatusCode::OK)?;
        Ok(())
    });
}

async fn agent(folder: &Folder, upstreams: &[&FaultRegistry]) -> Result<Agent> {
    let mut config = AgentConfig::without_containerd(folder.path());
    let urls: Vec<String> = upstreams.iter().map(|registry| registry.url()).collect();
    config.registry("reg.test", &urls.iter().map(String::as_str).collect::<Vec<_>>());
    Agent::start(&folder.path().join("agent"), &config).await
}
