//! The Pod is not the host: files of the host that the agent doesn't see, and the host's certificate authorities.

use anyhow::{Result, ensure};
use http::StatusCode;
use larder_integration::{Agent, AgentConfig, FaultRegistry, Folder, Image, Transport, Upstream};
use std::time::Duration;

use crate::support::{Case, asked_by_agent, ensure_only_the_agent_asked, on_every_containerd, run};

on_every_containerd!(over tls: what_is_not_mounted_stays_with_containerd);

/// A mirror in the user's own hosts.toml, whose CA lies in a folder that isn't mounted: the agent leaves it out and says
/// so, and containerd goes on to it.
async fn what_is_not_mounted_stays_with_containerd(case: Case) -> Result<()> {
    let (mirror, origin) = (FaultRegistry::start_over(Transport::Tls).await?, FaultRegistry::start().await?);
    mirror.add(&Image::tiny(11), "acme/app", "v1");
    origin.add(&Image::tiny(12), "acme/app", "v2");
    let corp = Folder::new()?;
    let ca = corp.path().join("ca.pem");
    std::fs::write(&ca, mirror.ca())?;
    let own = format!("[host.{:?}]\n  capabilities = [\"pull\", \"resolve\"]\n", origin.url());
    let text = format!(
        "server = {:?}\n[host.{:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = {ca:?}\n{own}",
        origin.url(),
        mirror.url()
    );
    let mut builder = case.builder()?.hosts("reg.test", &text)?;
    builder.agent.with_mounts(&[format!("mount -t tmpfs none {}", corp.path().display())]);
    let mut node = builder.start().await?;
    let agent = node.agent()?;
    ensure!(agent.log().contains("not taken over"), "{}", agent.log());

    // What the mirror alone has comes from it, by containerd's own way.
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure!(!mirror.requests().is_empty() && !mirror.requests().iter().any(asked_by_agent), "{:?}", mirror.requests());
    // What the rest of the chain has comes by the agent.
    origin.clear_log();
    node.containerd.pull("reg.test/acme/app:v2").await?;
    ensure_only_the_agent_asked(&origin)?;

    let output = agent.command(&["doctor"]).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [format!("the agent doesn't ask {}", mirror.url()), ca.display().to_string()] {
        ensure!(said.contains(&part), "{part:?} isn't in: {said}");
    }
    // Mounted, it is taken over after all.
    node.agent_mut()?.stop()?;
    let text = std::fs::read_to_string(node.hosts_dir().join("reg.test/hosts.toml"))?;
    ensure!(text.contains(&mirror.url()) && text.contains(&format!("{ca:?}")), "{text}");
    Ok(())
}

/// The host's bundle is read again when it changes; until there is one, Mozilla's are believed.
#[test]
fn authorities_of_the_host_are_followed() {
    run(async {
        let registry = FaultRegistry::start_over(Transport::Tls).await?;
        registry.add(&Image::tiny(13), "acme/app", "v1");
        let folder = Folder::new()?;
        let bundle = folder.path().join("bundle.pem");
        let mut config = AgentConfig::without_containerd(folder.path());
        // The test's own environment may name a folder.
        for (name, value) in [("SSL_CERT_FILE", bundle.display().to_string()), ("SSL_CERT_DIR", String::new())] {
            config.environment.push((name.to_owned(), value));
        }
        config.upstreams("reg.test", vec![Upstream::new(&registry.url())]);
        let agent = Agent::start(&folder.path().join("larder"), &config).await?;
        let url = format!("{}/v2/acme/app/manifests/v1?ns=reg.test", agent.mirror());
        ensure!(agent.http().get(&url).await?.status != StatusCode::OK);
        ensure!(agent.log().contains("Mozilla"), "{}", agent.log());
        let count = async |source: &str| -> Result<f64> {
            let label = format!("source={source:?}");
            Ok(agent.metrics().await?.sum("larder_upstream_authorities", &[&label]))
        };
        ensure!(count("bundled").await? > 100.0 && count("host").await? == 0.0);
        let said = String::from_utf8_lossy(&agent.command(&["doctor"]).await?.stdout).into_owned();
        ensure!(said.contains("built in") && said.contains("bundle.pem"), "{said}");

        std::fs::write(&bundle, registry.ca())?;
        let believed = async || (agent.http().get(&url).await.ok()?.status == StatusCode::OK).then_some(());
        larder_integration::until("the new authority is believed", Duration::from_secs(40), believed).await?;
        ensure!(count("bundled").await? == 0.0 && count("host").await? == 1.0);
        let said = String::from_utf8_lossy(&agent.command(&["doctor"]).await?.stdout).into_owned();
        ensure!(said.contains("1 certificate authorities are believed, from"), "{said}");
        Ok(())
    });
}
