//! Upstreams as they are configured, and what is remembered of how they behaved.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
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
        let line = status_of(&agent, &first).await?;
        ensure!(line.contains("DOWN for ") && line.contains("connection refused"), "{line}");
        let line = status_of(&agent, &second).await?;
        ensure!(!line.contains("DOWN"), "{line}");
        until("the port is free", Duration::from_secs(5), async || first.accept().ok()).await?;
        until("the first is asked again", Duration::from_secs(15), async || {
            puller.head("acme/app", "manifests/v1").await.ok()?;
            (first.count("HEAD", "/manifests/") > 0).then_some(())
        })
        .await?;
        let line = status_of(&agent, &first).await?;
        ensure!(!line.contains("DOWN") && line.contains(": answered "), "{line}");
        Ok(())
    });
}

/// By digest no tag is asked for first, which would have shown that it is silent.
#[test]
fn a_silent_upstream_costs_a_pull_by_digest_one_wait() {
    run(async {
        let (folder, first, second) = (Folder::new()?, FaultRegistry::start().await?, FaultRegistry::start().await?);
        let image = Image::many_layers(1, 10, 64);
        second.add(&image, "acme/app", "v1");
        first.fault(When::any(), Fault::Silent);
        let agent = agent(&folder, &[&first, &second]).await?;
        let puller = Puller::new(&agent, "reg.test", None);
        let begun = Instant::now();
        puller.head("acme/app", &format!("manifests/{}", image.root().digest)).await?.expect(StatusCode::OK)?;
        for blob in image.blobs() {
            let reply = puller.get("acme/app", &format!("blobs/{}", blob.digest)).await?.expect(StatusCode::OK)?;
            ensure!(reply.body == blob.bytes);
        }
        ensure!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
        let line = status_of(&agent, &first).await?;
        ensure!(line.contains("DOWN for ") && line.contains("said nothing for "), "{line}");
        Ok(())
    });
}

/// Wrong bytes of one aren't the other's fault.
#[test]
fn two_upstreams_on_one_host_are_two() {
    run(async {
        let (folder, registry) = (Folder::new()?, FaultRegistry::start().await?);
        let image = Image::opaque(1, 16 << 20);
        registry.add(&image, "acme/app", "v1");
        let layer = image.largest();
        let path = format!("blobs/{}", layer.digest);
        let [one, other] = ["one", "other"].map(|prefix| format!("/{prefix}/v2/acme/app/{path}"));
        registry.fault(When::path(&one), Fault::WrongByte((16 << 20) - 5));
        let mut config = AgentConfig::without_containerd(folder.path());
        let urls = ["one", "other"].map(|prefix| format!("{}/{prefix}", registry.url()));
        config.registry("reg.test", &urls.each_ref().map(String::as_str));
        let agent = Agent::start(&folder.path().join("agent"), &config).await?;
        let puller = Puller::new(&agent, "reg.test", None);
        let reply = puller.get("acme/app", &path).await?.expect(StatusCode::OK)?;
        ensure!(reply.cut.is_some(), "its last chunk is wrong, and isn't given");
        let reply = puller.get("acme/app", &path).await?.expect(StatusCode::OK)?;
        ensure!(reply.body == layer.bytes);
        let (one, other) = (registry.count("GET", &one), registry.count("GET", &other));
        ensure!((one, other) == (1, 1), "{one} and {other} requests");
        Ok(())
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
        let line = status_of(&agent, &first).await?;
        ensure!(line.contains("rests for ") && line.contains("(too many requests)"), "{line}");
        // As the last resort it is asked even so: it may have come round.
        second.fault(When::any(), Fault::status(503));
        first.heal();
        first.add(&Image::tiny(2), "acme/new", "v1");
        puller.head("acme/new", "manifests/v1").await?.expect(StatusCode::OK)?;
        Ok(())
    });
}

/// Where nobody else is left to ask, containerd isn't told to wait either: it would, and ask here again.
#[test]
fn a_429_of_the_only_upstream_is_not_passed_on() {
    run(async {
        let (folder, only) = (Folder::new()?, FaultRegistry::start().await?);
        only.fault(When::any(), Fault::status_with(429, "retry-after", "600"));
        let agent = agent(&folder, &[&only]).await?;
        let digest = Image::tiny(1).root().digest.clone();
        let asked = [
            (Method::HEAD, "manifests/v1".to_owned()),
            (Method::GET, "manifests/v1".to_owned()),
            (Method::HEAD, format!("manifests/{digest}")),
            (Method::GET, format!("manifests/{digest}")),
            (Method::HEAD, format!("blobs/{digest}")),
            (Method::GET, format!("blobs/{digest}")),
            (Method::GET, format!("referrers/{digest}")),
        ];
        let callers = [
            ("containerd/1.6.20", StatusCode::NOT_FOUND),
            ("containerd/v1.7.27", StatusCode::NOT_FOUND),
            ("containerd/v2.1.4", StatusCode::SERVICE_UNAVAILABLE),
        ];
        for (n, (caller, expected)) in callers.into_iter().enumerate() {
            for (method, what) in &asked {
                only.clear_log();
                let url = format!("{}/v2/acme/new{n}/{what}?ns=reg.test", agent.mirror());
                let headers = [("user-agent", caller)];
                let reply = agent.http().send(method.clone(), &url, &headers, Bytes::new()).await?;
                ensure!(reply.status == expected, "{caller}: {method} {what}: {reply:?}");
                ensure!(!reply.headers.contains_key("retry-after"), "{caller}: {method} {what}: {reply:?}");
                ensure!(only.met() > 0, "{caller}: {method} {what}: the upstream wasn't asked");
            }
        }
        Ok(())
    });
}

/// Each of the variables in each case, by TLS and without; and what they leave out.
#[test]
fn proxies_are_those_of_the_environment() {
    run(async {
        let (folder, proxy) = (Folder::new()?, Proxy::start().await?);
        let (tls, plain) = (FaultRegistry::start_over(Transport::Tls).await?, FaultRegistry::start().await?);
        let image = Image::tiny(1);
        tls.add(&image, "acme/app", "v1");
        plain.add(&image, "acme/app", "v1");
        // Loopback by its own name is never reached by a proxy. These are loopback by names of others.
        let hosts = folder.path().join("hosts-file");
        std::fs::write(&hosts, "127.0.0.1 tls.corp.test plain.corp.test\n")?;
        let (tls_at, plain_at) =
            (tls.url().replace("127.0.0.1", "tls.corp.test"), plain.url().replace("127.0.0.1", "plain.corp.test"));
        for name in ["tls.corp.test", "plain.corp.test"] {
            proxy.look_up(name, Ipv4Addr::LOCALHOST);
        }
        let variables: [(&str, &[(&str, &str)]); 4] = [
            ("upper", &[("HTTPS_PROXY", "here"), ("HTTP_PROXY", "here")]),
            ("lower", &[("https_proxy", "here"), ("http_proxy", "here")]),
            ("upper, not there", &[("HTTPS_PROXY", "here"), ("HTTP_PROXY", "here"), ("NO_PROXY", "corp.test")]),
            ("lower, not there", &[("https_proxy", "here"), ("http_proxy", "here"), ("no_proxy", ".corp.test,x.test")]),
        ];
        for (n, (case, variables)) in variables.into_iter().enumerate() {
            let mut config = AgentConfig::without_containerd(folder.path());
            config
                .with_mounts(&[format!("mount --bind {} /etc/hosts", hosts.display())])
                .registry("tls.test", &[&tls_at])
                .registry("plain.test", &[&plain_at]);
            // None of the test's own environment.
            let names = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];
            let value = |name: &str| variables.iter().find(|(have, _)| *have == name).map_or("", |(_, value)| *value);
            let value = |name| if value(name) == "here" { proxy.url() } else { value(name).to_owned() };
            config.environment = names.iter().map(|name| ((*name).to_owned(), value(name))).collect();
            let agent = Agent::start(&folder.path().join(format!("agent{n}")), &config).await?;
            proxy.demand_nothing();
            for (name, registry) in [("tls.test", &tls), ("plain.test", &plain)] {
                registry.clear_log();
                Puller::new(&agent, name, None)
                    .fetch("acme/app", "v1")
                    .await
                    .with_context(|| format!("{case}: {name}"))?;
                ensure!(!registry.requests().is_empty());
            }
            let asked = proxy.requests();
            let tunnels =
                asked.iter().filter(|one| one.method == "CONNECT" && one.target.starts_with("tls.corp.test:"));
            let passed_on = asked.iter().filter(|one| one.target.starts_with("http://plain.corp.test:"));
            if case.ends_with("not there") {
                ensure!(asked.is_empty(), "{case}: {asked:?}");
            } else {
                ensure!(tunnels.count() > 0 && passed_on.count() > 0, "{case}: {asked:?}");
            }
        }
        Ok(())
    });
}

/// The line of an upstream in `larder status`.
async fn status_of(agent: &Agent, upstream: &FaultRegistry) -> Result<String> {
    let said = agent.say(&["status"]).await?;
    let line = said.lines().find(|line| line.contains(&format!(" at {}", upstream.url())));
    Ok(line.with_context(|| format!("no line for {}: {said}", upstream.url()))?.to_owned())
}

async fn agent(folder: &Folder, upstreams: &[&FaultRegistry]) -> Result<Agent> {
    let mut config = AgentConfig::without_containerd(folder.path());
    let urls: Vec<String> = upstreams.iter().map(|registry| registry.url()).collect();
    config.registry("reg.test", &urls.iter().map(String::as_str).collect::<Vec<_>>());
    Agent::start(&folder.path().join("agent"), &config).await
}
