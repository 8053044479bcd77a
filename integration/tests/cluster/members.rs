//! Who is there: seeds, restarts, those who leave.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use larder_integration::{Folder, Image, NameServer, PEERS_PORT, until};
use serde_json::Value;

use super::{NAME, Stage, within};
use crate::support::run;

/// A restart needs no seed: the last known members are on disk.
#[test]
fn a_node_comes_back_without_seeds() {
    run(async {
        let stage = Stage::with(&Image::tiny(1), None)?;
        let mut cluster = stage.nodes(3, None)?.start().await?;
        for harshly in [false, true] {
            let agent = &mut cluster.member_mut(2).agent;
            let text = std::fs::read_to_string(agent.config())?;
            let lines = text.lines().map(|line| if line.starts_with("seeds") { "seeds = []" } else { line });
            std::fs::write(agent.config(), lines.collect::<Vec<_>>().join("\n"))?;
            match harshly {
                true => agent.kill(),
                false => agent.stop()?,
            }
            agent.start_again().await?;
            cluster.settle().await.with_context(|| format!("ended harshly: {harshly}"))?;
        }
        Ok(())
    });
}

/// A name with many addresses, asked of a server of its own; and asked again, since it had none at first.
#[test]
fn seeds_come_from_a_name() {
    run(async {
        let stage = Stage::with(&Image::tiny(2), None)?;
        let dns = NameServer::start_on(&stage.network.host(None)?, "larder-peers.test").await?;
        let server = dns.address().to_string();
        let builder = stage.nodes(3, None)?.seeds(&["dns:larder-peers.test:7441"]);
        let builder = builder.configure(move |_, config| {
            config.set_text("peers", "dns_server", &server);
        });
        let mut cluster = builder.launch().await?;
        until("the name is asked for", Duration::from_secs(5), async || (dns.asked() >= 3).then_some(())).await?;
        dns.set(&cluster.members().iter().map(|member| member.host.address()).collect::<Vec<_>>());
        cluster.settle().await
    });
}

/// At a first start nobody is remembered, and the server that should know the others says nothing: nothing waits for it.
#[test]
fn a_silent_name_server_delays_nothing() {
    run(async {
        const AT_ONCE: Duration = Duration::from_secs(5);
        let stage = Stage::with(&Image::one_layer(5, 1), None)?;
        let host = stage.network.host(None)?;
        let silent = host.namespace().inside(|| UdpSocket::bind((host.address(), 53)))?;
        silent.set_nonblocking(true)?;
        let server = silent.local_addr()?.to_string();
        let builder = stage.nodes(1, None)?.seeds(&["dns:larder-peers.test:7441"]).configure(move |_, config| {
            config.set_text("peers", "dns_server", &server);
        });
        let cluster = within(AT_ONCE, builder.launch()).await.context("starting")?;
        within(AT_ONCE, cluster.member(0).pull(NAME)).await.context("pulling")?;
        let is_asked = async || silent.recv(&mut [0; 512]).is_ok().then_some(());
        until("the name is asked for", AT_ONCE, is_asked).await
    });
}

/// Who leaves says so, and is asked for nothing from then on; who dies is found out.
#[test]
fn members_leave_and_die() {
    run(async {
        let stage = Stage::with(&Image::tiny(3), None)?;
        let mut cluster = stage.nodes(4, None)?.start().await?;
        cluster.member_mut(3).agent.stop()?;
        within(Duration::from_secs(3), async { cluster.settle_among(&[0, 1, 2], 3).await }).await.context("leaving")?;
        cluster.member_mut(2).agent.kill();
        cluster.settle_among(&[0, 1], 2).await.context("dying")?;
        cluster.member(0).pull(NAME).await?;
        Ok(())
    });
}

/// An address that changes under a running agent: it goes on at the new one.
#[test]
fn a_node_whose_address_changes_is_found_at_the_new_one() {
    run(async {
        let image = Image::tiny(6);
        let stage = Stage::with(&image, None)?;
        let mut cluster = stage.nodes(3, None)?.start().await?;
        let elsewhere = Ipv4Addr::new(10, 77, 200, 3);
        cluster.member_mut(2).host.move_to(elsewhere)?;
        let there = format!("{elsewhere}:{PEERS_PORT}");
        for number in [0, 1] {
            until("the others know where it is", Duration::from_secs(60), async || {
                let shown = cluster.member(number).agent.say(&["status", "--peers"]).await.ok()?;
                shown.contains(&there).then_some(())
            })
            .await?;
        }
        cluster.settle().await?;
        let shown = cluster.member(2).agent.say(&["status", "--peers"]).await?;
        ensure!(shown.contains(&there), "{shown}");
        cluster.pull(NAME, &image).await?;
        Ok(())
    });
}

/// What it takes to join may come after the agent: it serves meanwhile, says what is missing, and joins by itself.
#[test]
fn who_cannot_join_at_the_start_does_so_later() {
    run(async {
        let image = Image::tiny(7);
        let stage = Stage::with(&image, None)?;
        let folder = Folder::new()?;
        let late = folder.path().join("ca.pem");
        let ca = late.clone();
        let builder = stage.nodes(3, None)?.configure(move |number, config| {
            if number == 1 {
                config.set_path("peers", "ca", &ca);
            }
        });
        let taken = builder.hosts()[2].namespace().inside(|| TcpListener::bind(("0.0.0.0", PEERS_PORT)))?;
        let mut cluster = within(Duration::from_secs(10), builder.launch()).await.context("starting")?;
        let says = async |number: usize, what: &str| {
            until(&format!("node {number} says {what}"), Duration::from_secs(20), async || {
                let said = cluster.member(number).agent.say(&["status", "--peers"]).await.ok()?;
                (said.contains("no peers") && said.contains(what)).then_some(())
            })
            .await
        };
        says(1, "No such file or directory").await?;
        says(2, "no port for peers").await?;
        for number in [1, 2] {
            let metrics = cluster.member(number).agent.metrics().await?;
            ensure!(metrics.has("larder_peer_joined") && metrics.sum("larder_peer_joined", &[]) == 0.0);
            cluster.member(number).pull(NAME).await?;
        }
        // Another fault is said too.
        std::fs::write(&late, "half of it")?;
        says(1, "it has no certificate").await?;
        std::fs::copy(cluster.authority().files().certificate, &late)?;
        drop(taken);
        cluster.settle().await?;
        ensure!(cluster.sum("larder_peer_joined", &[]).await == 3.0);
        Ok(())
    });
}

/// What a person sees of it.
#[test]
fn status_shows_the_peers() {
    run(async {
        let image = Image::one_layer(4, 2);
        let stage = Stage::with(&image, None)?;
        let zones = |number: usize, config: &mut larder_integration::AgentConfig| {
            config.set_text("peers", "zone", ["a", "b", "b"][number]);
        };
        let cluster = stage.nodes(3, None)?.configure(zones).start().await?;
        cluster.pull(NAME, &image).await?;
        let agent = &cluster.member(0).agent;
        let shown: Value = serde_json::from_str(&agent.say(&["status", "--peers", "--json"]).await?)?;
        let text = shown.to_string();
        for member in cluster.members() {
            ensure!(
                text.contains(&member.host.address().to_string()),
                "{} isn't shown: {shown:#}",
                member.host.address()
            );
        }
        let table = agent.say(&["status", "--peers"]).await?;
        ensure!(table.contains(&cluster.member(1).host.address().to_string()), "{table}");
        Ok(())
    });
}
