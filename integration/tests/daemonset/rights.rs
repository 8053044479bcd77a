//! Without a capability the agent does for root's folders; for others it says what it lacks.

use std::os::unix::fs::chown;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use larder_integration::{FaultRegistry, Image, Node, Release, listing, until};

use super::{daemon_set, node};
use crate::support::{Case, asked_by_agent, ensure_only_the_agent_asked, run};

const CASE: Case = Case { release: Release::Sid, tls: true };
/// What the chart's page says to add.
const CAPABILITIES: [&str; 3] = ["CHOWN", "DAC_OVERRIDE", "FOWNER"];
/// Whose the hosts folder is.
const SOMEBODY: u32 = 1000;

/// A registry's folder with the user's file, and all of the hosts folder, belong to somebody.
fn give_away(node: &Node) -> Result<()> {
    let registry = node.hosts_dir().join("reg.test");
    for path in [node.hosts_dir(), &registry, &registry.join("hosts.toml")] {
        chown(path, Some(SOMEBODY), Some(SOMEBODY))?;
    }
    Ok(())
}

/// The agent serves, and pulls go past it, until it has what `larder doctor` says; then it writes its entry beside the
/// user's, and takes it back.
#[test]
fn a_hosts_folder_of_somebody_elses() {
    run(async {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::many_layers(5, 2, 500), "acme/app", "v1");
        let (node, mut set) = node(CASE, &registry, "presets/plain").await?;
        let containerd = &node.containerd;
        give_away(&node)?;
        let file = node.hosts_dir().join("reg.test/hosts.toml");
        let before = listing(node.hosts_dir(), &[])?;

        let pod = set.start(containerd, "larder-1").await?;
        let (code, said) = containerd.exec(&pod, &["larder", "doctor"]).await?;
        let told = format!("capabilities: [{}]", CAPABILITIES.join(", "));
        ensure!(code == 1 && said.contains(&told) && said.contains(&SOMEBODY.to_string()), "{code}: {said}");
        registry.clear_log();
        let id = containerd.pull("reg.test/acme/app:v1").await?;
        ensure!(!registry.requests().iter().any(asked_by_agent), "it has entered itself");
        ensure!(listing(node.hosts_dir(), &[])? == before, "something is written");
        containerd.end_pod(&pod, set.grace()).await?;

        set.add_capabilities(&CAPABILITIES);
        let pod = set.start(containerd, "larder-2").await?;
        let port = set.mirror_port().to_string();
        let entered = async || std::fs::read_to_string(&file).ok()?.contains(&port).then_some(());
        until("the agent has entered itself", Duration::from_secs(20), entered).await.with_context(|| pod.log())?;
        let (code, said) = containerd.exec(&pod, &["larder", "doctor"]).await?;
        ensure!(code == 0, "{code}: {said}");
        containerd.forget("reg.test/acme/app", &id).await?;
        registry.clear_log();
        containerd.pull("reg.test/acme/app:v1").await?;
        ensure_only_the_agent_asked(&registry)?;
        containerd.end_pod(&pod, set.grace()).await?;

        let mut clean_up = daemon_set(&node, &registry, "clean-up/plain").await?;
        clean_up.add_capabilities(&CAPABILITIES);
        let cleaning = clean_up.start(containerd, "clean-up-1").await?;
        containerd.end_pod(&cleaning, clean_up.grace()).await?;
        ensure!(listing(node.hosts_dir(), &[])? == before, "{}", cleaning.log());
        Ok(())
    });
}
