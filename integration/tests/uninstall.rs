//! What was installed is taken back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use larder_integration::{Agent, AgentConfig, FaultRegistry, Folder, Image, Node, Release, listing, until};

use crate::support::{Case, run};

const CASE: Case = Case { release: Release::Sid, tls: true };

/// What is on a node besides its containerd and the agent's own folder.
type Seen = BTreeMap<PathBuf, String>;

fn seen(node: &Node) -> Result<Seen> {
    listing(node.folder(), &[&node.folder().join("containerd"), &node.folder().join("larder")])
}

/// An agent that has pulled something, on a node with a hosts.toml of its own; and what the node was like before.
async fn node(registry: &FaultRegistry) -> Result<(Node, Seen)> {
    let image = Image::many_layers(1, 3, 1500);
    registry.add(&image, "acme/app", "v1");
    let mut node = CASE.builder()?.registry("reg.test", &registry.url())?.without_agent().start().await?;
    let before = seen(&node)?;
    node.install_agent().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure!(seen(&node)? != before, "nothing was installed");
    Ok((node, before))
}

fn ensure_same(node: &Node, before: &Seen) -> Result<()> {
    let now = seen(node)?;
    ensure!(now == *before, "before: {before:#?}\nnow: {now:#?}");
    Ok(())
}

async fn fails(agent: &Agent, arguments: &[&str]) -> Result<String> {
    let output = agent.command(arguments).await?;
    ensure!(!output.status.success(), "{arguments:?} has succeeded: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn nothing_is_left() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let (mut node, before) = node(&registry).await?;
        let agent = node.agent_mut()?;
        let refused = fails(agent, &["uninstall"]).await?;
        ensure!(refused.contains("stop it first"), "{refused}");
        ensure!(agent.probe("ready").await?, "the agent goes on");
        let left = fails(agent, &["uninstall", "--check"]).await?;
        ensure!(left.contains("hosts.toml") && left.contains("index.redb") && left.contains("larder.sock"), "{left}");

        agent.stop()?;
        let mine = agent.cache().join("blobs/mine");
        std::fs::write(&mine, "precious")?;
        let said = agent.say(&["uninstall"]).await?;
        ensure!(said.contains("the original is back") && said.contains(&mine.display().to_string()), "{said}");
        ensure!(std::fs::read_to_string(&mine)? == "precious");
        ensure!(listing(&agent.cache(), &[])?.len() == 3, "{:?}", listing(&agent.cache(), &[])?);
        ensure_same(&node, &before)?;

        // Again, as often as one likes.
        let agent = node.agent()?;
        let left = fails(agent, &["uninstall", "--check"]).await?;
        ensure!(left.trim() == agent.cache().join("blobs").display().to_string(), "{left}");
        std::fs::remove_file(mine)?;
        agent.say(&["uninstall"]).await?;
        ensure!(!agent.cache().exists());
        ensure!(agent.say(&["uninstall", "--check"]).await?.is_empty());
        ensure!(agent.say(&["uninstall"]).await?.contains("nothing else of larder's"));
        node.containerd.wipe().await?;
        node.containerd.pull("reg.test/acme/app:v1").await?;
        ensure_same(&node, &before)
    });
}

#[test]
fn the_cache_may_stay() {
    run(async {
        let mut registry = FaultRegistry::start().await?;
        let (mut node, before) = node(&registry).await?;
        node.agent_mut()?.stop()?;
        let agent = node.agent()?;
        agent.say(&["uninstall", "--keep-cache"]).await?;
        ensure_same(&node, &before)?;
        agent.say(&["uninstall", "--keep-cache", "--check"]).await?;
        ensure!(!agent.cache().join("tls").exists() && agent.cache().join("index.redb").exists());
        registry.refuse();
        node.containerd.wipe().await?;
        node.agent_mut()?.start_again().await?;
        node.containerd.pull("reg.test/acme/app:v1").await.map(drop)
    });
}

/// One that stays waits for the agent's end, and takes back what comes again.
#[test]
fn one_that_stays_waits_for_the_agent() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let (mut node, before) = node(&registry).await?;
        let stays = node.agent()?.beside("stays")?;
        let cleaning = async {
            let output = stays.command_for(&["uninstall", "--linger"], Duration::from_secs(60)).await?;
            ensure!(output.status.success(), "{output:?}");
            anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let clean =
            async || stays.command(&["uninstall", "--check"]).await.is_ok_and(|o| o.status.success()).then_some(());
        let ending = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ensure!(node.agent()?.probe("ready").await?, "the agent goes on");
            node.agent_mut()?.stop()?;
            until("the node is clean", Duration::from_secs(20), clean).await?;
            ensure_same(&node, &before)?;
            node.agent_mut()?.start_again().await?;
            node.agent_mut()?.stop()?;
            until("the node is clean again", Duration::from_secs(30), clean).await?;
            ensure_same(&node, &before)
        };
        tokio::select! {
            ended = cleaning => anyhow::bail!("it doesn't stay: {ended:?}"),
            ended = ending => ended,
        }
    });
}

/// The names of two Services, as this machine's own resolver finds them in a file of its own.
#[test]
fn one_waits_until_every_node_is_clean() {
    run(async {
        let folder = Folder::new()?;
        let hosts = folder.path().join("hosts");
        let mut config = AgentConfig::without_containerd(folder.path());
        config.with_mounts(&[format!("mount --bind {} /etc/hosts", hosts.display())]);
        let agent = Agent::prepare(&folder.path().join("larder"), &config)?;
        let start = |timeout: &str, more: &[&str]| {
            let arguments = [&["uninstall", "--await", "clean-up.test", "--timeout", timeout], more].concat();
            agent.start_command(&arguments, folder.path().join("log"))
        };
        let all = "10.0.0.1 clean-up.test-all\n10.0.0.2 clean-up.test-all\n";
        std::fs::write(&hosts, all.to_owned() + "10.0.0.1 clean-up.test\n")?;
        let mut waiting = start("60s", &["--strict"])?;
        let seen = async || waiting.log().contains("1 of 2 nodes are clean").then_some(());
        until("it sees both nodes", Duration::from_secs(20), seen).await?;
        ensure!(waiting.is_running());
        std::fs::write(&hosts, all.to_owned() + "10.0.0.1 clean-up.test\n10.0.0.2 clean-up.test\n")?;
        let ended = async || (!waiting.is_running()).then_some(());
        until("it is done", Duration::from_secs(30), ended).await?;
        ensure!(waiting.has_succeeded() && waiting.log().contains("2 of 2"), "{}", waiting.log());

        // A node that is down keeps nobody waiting for ever, and is named.
        std::fs::write(&hosts, all.to_owned() + "10.0.0.1 clean-up.test\n")?;
        for (more, succeeds) in [(&[][..], true), (&["--strict"], false)] {
            let mut waiting = start("3s", more)?;
            let ended = async || (!waiting.is_running()).then_some(());
            until("its time is over", Duration::from_secs(20), ended).await?;
            ensure!(
                waiting.has_succeeded() == succeeds && waiting.log().contains("not clean within 3s: 10.0.0.2"),
                "{}",
                waiting.log()
            );
        }
        Ok(())
    });
}
