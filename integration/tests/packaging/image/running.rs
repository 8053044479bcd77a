//! Each containerd runs it, and in it names are resolved.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use larder_integration::{Agent, AgentConfig, FaultRegistry, Folder, Image, LarderImage, NameServer, until};

use crate::support::{Case, on_every_containerd};

on_every_containerd!(over tls: it_runs_and_resolves_names);

async fn it_runs_and_resolves_names(case: Case) -> Result<()> {
    let node = case.builder()?.without_agent().start().await?;
    LarderImage::shared().await?.import_into(&node.containerd).await?;
    let say = async |command: &[&str]| node.containerd.run_with(LarderImage::NAME, &["--rm"], command).await;
    let version = say(&["larder", "--version"]).await?;
    ensure!(version.trim() == concat!("larder ", env!("CARGO_PKG_VERSION")), "{version}");
    say(&["larder", "config", "check"]).await?;
    let shell = say(&["/bin/sh", "-c", ":"]).await.err().context("there is a shell")?.to_string();
    ensure!(shell.contains("no such file"), "{shell}");

    // The image's own command, with two registries under names: of the hosts file, and of the DNS.
    let registry = FaultRegistry::start().await?;
    let image = Image::tiny(1);
    registry.add(&image, "acme/app", "v1");
    let port = registry.url().rsplit_once(':').context("a registry without port")?.1.to_owned();
    let folder = Folder::new()?;
    let at = folder.path();
    let mut config = AgentConfig::without_containerd(at);
    config.registry("hosts.test", &[&format!("http://in-hosts.test:{port}")]);
    config.registry("dns.test", &[&format!("http://in-dns.test:{port}")]);
    let agent = Agent::prepare(at, &config)?;
    let [high, low] = rand::random::<[u8; 2]>();
    let names = NameServer::start_at(Ipv4Addr::new(127, 77, high, low.clamp(1, 254)), "in-dns.test").await?;
    names.set(&[Ipv4Addr::LOCALHOST]);
    std::fs::write(at.join("hosts"), "127.0.0.1 localhost in-hosts.test\n")?;
    std::fs::write(at.join("resolv.conf"), format!("nameserver {}\n", names.address().ip()))?;

    let bind = |from: &Path, to: &str, mode: &str| {
        format!("--mount=type=bind,src={},dst={to},options=rbind:{mode}", from.display())
    };
    let options = [
        "--detach".to_owned(),
        "--read-only".to_owned(),
        format!("--log-uri=file://{}", at.join("log").display()),
        format!("--with-ns=network:/proc/{}/ns/net", std::process::id()),
        bind(at, &at.display().to_string(), "rw"),
        bind(&agent.config(), "/etc/larder/larder.toml", "ro"),
        bind(&at.join("hosts"), "/etc/hosts", "ro"),
        bind(&at.join("resolv.conf"), "/etc/resolv.conf", "ro"),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    node.containerd.run_with(LarderImage::NAME, &options, &[]).await?;
    let readiness = format!("{}/readyz", agent.metrics_url());
    let ready = async || {
        let reply = agent.http().get(&readiness).await.ok()?;
        (reply.status == StatusCode::OK).then_some(())
    };
    until("the agent is ready", Duration::from_secs(20), ready).await.with_context(|| agent.log())?;
    for name in ["hosts.test", "dns.test"] {
        let manifest = format!("{}/v2/acme/app/manifests/v1?ns={name}", agent.mirror());
        let reply = agent.http().get(&manifest).await?;
        ensure!(reply.status == StatusCode::OK, "{name}: {}: {}", reply.status, agent.log());
        ensure!(reply.body == image.root().bytes, "{name} gave something else");
    }
    ensure!(names.asked() > 0, "the name server wasn't asked");
    Ok(())
}
