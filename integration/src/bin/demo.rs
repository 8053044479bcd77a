//! The demo: a pull through Larder, the registry stopped, containerd wiped, the pull again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use larder_integration::{Agent, Image, Node, Registry, Release, until};

const IMAGE: &str = "registry.demo/acme/app:v1";

#[tokio::main]
async fn main() -> Result<()> {
    let release = Release::Sid;
    say("a node: containerd, and the agent that has entered itself in its hosts.toml; and a registry beside it");
    let mut registry = Registry::start().await?;
    let image = Image::builder(1).layer(96 << 20).layer(8 << 20).layer(1 << 20).build();
    registry.push(&image, "acme/app", "v1").await?;
    let node = Node::builder(release)?.registry("registry.demo", &registry.url())?.start().await?;
    let agent = node.agent()?;
    say(&format!("containerd {}, docker-registry, larder on port {}", release.version()?, agent.mirror_port()));

    say("the entry that containerd reads (certs.d/registry.demo/hosts.toml):");
    show(&std::fs::read_to_string(node.hosts_dir().join("registry.demo/hosts.toml"))?);
    until("the canary arrives", Duration::from_secs(20), async || {
        (agent.metrics().await.ok()?.sum("larder_canary_success", &[]) == 1.0).then_some(())
    })
    .await?;
    say("a canary pull has proved that containerd comes to the agent");

    pull(&node, "the first pull, from the registry through the agent").await?;
    registry.stop();
    node.containerd.wipe().await?;
    say("the registry is stopped, and containerd wiped: no image, no layer");
    pull(&node, "the same pull again").await?;
    say("where its bytes came from, by the agent's metrics:");
    show(&sources(agent).await?);

    for command in [["status"].as_slice(), &["cache", "ls"]] {
        say(&format!("larder {}", command.join(" ")));
        show(&agent.say(command).await?);
    }
    say("all of it was in a folder that is gone now; nothing was installed");
    Ok(())
}

async fn pull(node: &Node, what: &str) -> Result<()> {
    let begun = Instant::now();
    node.containerd.pull(IMAGE).await.with_context(|| what.to_owned())?;
    say(&format!("{what}: {:.2} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

async fn sources(agent: &Agent) -> Result<String> {
    let metrics = agent.metrics().await?;
    // A transfer: from upstream, and into the store; upstream: past the store.
    let line = |source: &str| {
        let bytes = metrics.sum("larder_served_bytes_total", &[&format!("source=\"{source}\"")]);
        format!("{source}: {:.1} MiB", bytes / f64::from(1 << 20))
    };
    Ok([line("transfer"), line("store"), line("upstream")].join("\n"))
}

fn say(text: &str) {
    println!("→ {text}");
}

fn show(text: &str) {
    for line in text.lines() {
        println!("    {line}");
    }
}
