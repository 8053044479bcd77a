//! What was installed is taken back.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use larder_integration::{Agent, AgentConfig, FaultRegistry, Folder, Image, Node, Release, listing, until};

use crate::support::{Case, asked_by_agent, on_every_containerd, run};

on_every_containerd!(over tls: pulls_go_on_while_it_comes_and_goes);

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

/// No pull fails while a node's first agent starts, enters itself, ends and is taken back: not even for the moment in
/// which a hosts.toml names a certificate.
async fn pulls_go_on_while_it_comes_and_goes(case: Case) -> Result<()> {
    const ROUNDS: usize = 3;
    let registry = FaultRegistry::start().await?;
    for (seed, repository) in (11..).zip(["acme/fetched", "acme/resolved"]) {
        registry.add(&Image::many_layers(seed, 3, 300), repository, "v1");
        registry.add(&Image::many_layers(seed + 10, 3, 300), &format!("{repository}-by-default"), "v1");
    }
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.registry(&registry.host(), &[&registry.url()]);
    let mut node = builder.start().await?;
    node.agent_mut()?.stop()?;
    node.agent()?.say(&["uninstall"]).await?;
    let before = seen(&node)?;

    // By a hosts.toml that was there before, and by `_default`, which comes and goes; all of the content, and, more often,
    // what the tag means now.
    let own = |repository: &str| format!("reg.test/{repository}");
    let default = |repository: &str| format!("{}/{repository}-by-default", registry.host());
    let fetched = [own("acme/fetched"), default("acme/fetched")];
    let resolved = [own("acme/resolved"), default("acme/resolved")];
    for round in 1..=ROUNDS {
        registry.clear_log();
        let (containerd, agent) = (&node.containerd, node.agent.as_mut().context("this node has no agent")?);
        let (counts, is_over) = ([const { Cell::new(0) }; 4], Cell::new(false));
        let pull_on = async |name: &str, count: &Cell<usize>, forgets: bool| {
            while !is_over.get() {
                let image = containerd.pull(&format!("{name}:v1")).await;
                let image = image.with_context(|| format!("round {round}, after {} pulls of {name}", count.get()))?;
                if forgets {
                    containerd.forget(name, &image).await?;
                }
                count.set(count.get() + 1);
            }
            anyhow::Ok(())
        };
        let come_and_go = async {
            agent.start_again().await?;
            until("all of them come by the agent", Duration::from_secs(30), async || {
                let requests = registry.requests();
                let comes = |path| requests.iter().any(|it| asked_by_agent(it) && it.target.contains(path));
                let paths = ["/fetched/", "/fetched-by-default/", "/resolved/", "/resolved-by-default/"];
                paths.into_iter().all(comes).then_some(())
            })
            .await?;
            agent.tell_to_end()?;
            until("the agent has ended", Duration::from_secs(30), async || (!agent.is_running()).then_some(())).await?;
            agent.say(&["uninstall"]).await?;
            let so_far = counts.each_ref().map(Cell::get);
            // The first of them may have begun before.
            let goes_on = async || counts.iter().zip(so_far).all(|(count, then)| count.get() > then + 1).then_some(());
            until("pulls go on without the agent", Duration::from_secs(30), goes_on).await?;
            is_over.set(true);
            anyhow::Ok(())
        };
        let pulls = [(&fetched[0], true), (&fetched[1], true), (&resolved[0], false), (&resolved[1], false)];
        let pulls = pulls.into_iter().zip(&counts).map(|((name, forgets), count)| pull_on(name, count, forgets));
        tokio::try_join!(try_join_all(pulls), come_and_go)?;
        eprintln!("round {round}: {counts:?} pulls");
        ensure_same(&node, &before)?;
    }
    Ok(())
}

/// Who has read a hosts.toml reads the certificate that it names later: `ctr` of 1.6 after the system's, each time anew.
#[test]
fn who_has_read_of_a_certificate_finds_it() {
    run(async {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::tiny(5), "acme/app", "v1");
        let case = Case { release: Release::Bookworm, tls: true };
        let mut node = case.node(&registry).await?;
        node.agent_mut()?.stop()?;
        let (node, is_over) = (&node, Cell::new(false));
        let pull_on = async |name: String| {
            while !is_over.get() {
                node.containerd.ctr_pull(&name, node.hosts_dir()).await?;
            }
            anyhow::Ok(())
        };
        let come_and_go = async {
            for _ in 0..10 {
                node.agent()?.say(&["hosts", "restore"]).await?;
                node.agent()?.say(&["hosts", "apply"]).await?;
            }
            is_over.set(true);
            anyhow::Ok(())
        };
        // By its own hosts.toml, which is replaced, and by `_default`, which is removed.
        let (own, other) = ("reg.test/acme/app:v1".to_owned(), format!("{}/acme/app:v1", registry.host()));
        for name in [&own, &other] {
            node.containerd.ctr_pull(name, node.hosts_dir()).await?;
        }
        let pulls = [own.clone(), own, other.clone(), other].map(pull_on);
        tokio::try_join!(try_join_all(pulls), come_and_go).map(drop)
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
