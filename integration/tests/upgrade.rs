//! An agent takes over from the one before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use larder_integration::{Agent, Challenge, Fault, FaultRegistry, Image, Login, Node, When, until};

use crate::support::{Case, on_every_containerd};

on_every_containerd!(over tls:
    no_pull_fails_in_an_upgrade,
    no_private_pull_fails_in_an_upgrade,
    a_pull_that_is_cut_short_goes_on_with_the_next_agent);
on_every_containerd!(over tls by one:
    nobody_is_refused,
    the_agent_before_is_killed,
    the_agent_before_hangs,
    one_that_waits_may_be_taken_back,
    two_that_wait,
    the_next_one_has_another_port,
);

const MEBIBYTE: u64 = 1 << 20;
/// For a process to end, with nothing under way.
const SOON: Duration = Duration::from_secs(10);

/// Ends `old` and waits until `new` serves; how long that took.
async fn replace(old: &mut Agent, new: &mut Agent) -> Result<Duration> {
    let begun = Instant::now();
    old.tell_to_end()?;
    serves(new).await?;
    let took = begun.elapsed();
    until("the old one has ended", SOON, async || (!old.is_running()).then_some(())).await?;
    Ok(took)
}

/// A node that has pulled all there is, of a registry that is gone since.
async fn one_that_has_all(case: Case, seed: u64) -> Result<(FaultRegistry, Node)> {
    let mut registry = FaultRegistry::start().await?;
    registry.add(&Image::many_layers(seed, 3, 500), "acme/app", "v1");
    let node = case.node_of_the_agent_alone(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    registry.refuse();
    Ok((registry, node))
}

/// Waits until it has the store: it shows what it does then.
async fn serves(agent: &Agent) -> Result<()> {
    let shows = async || agent.command(&["status"]).await.is_ok_and(|output| output.status.success()).then_some(());
    until("the new agent serves", Duration::from_secs(20), shows).await
}

/// The registry is gone, and containerd can't reach it past the agent: whoever isn't served by an agent, is not served.
async fn no_pull_fails_in_an_upgrade(case: Case) -> Result<()> {
    pulls_go_on(case, None).await
}

/// What has to be asked for with credentials: tokens and redirects are those of one process.
async fn no_private_pull_fails_in_an_upgrade(case: Case) -> Result<()> {
    pulls_go_on(case, Some(Login::password("alice", "wonder:land"))).await
}

async fn pulls_go_on(case: Case, login: Option<Login>) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let image = Image::many_layers(1, 6, 1500);
    registry.add(&image, "acme/app", "v1");
    if login.is_some() {
        registry.challenge(Some(Challenge::bearer().account("alice", "wonder:land", "acme/app")));
    }
    let node = case.node_of_the_agent_alone(&registry).await?;
    let pull = async || match &login {
        Some(login) => node.containerd.pull_as("reg.test/acme/app:v1", login).await,
        None => node.containerd.pull("reg.test/acme/app:v1").await,
    };
    pull().await?;
    registry.refuse();
    let (done, pulls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let pulling = async {
        while !done.load(Ordering::Relaxed) {
            node.containerd.wipe().await?;
            pull().await?;
            pulls.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    let upgrading = async {
        let first = node.agent()?;
        let mut agents: Vec<Agent> = Vec::new();
        for round in 0..3 {
            let mut new = first.beside(&round.to_string())?;
            new.launch()?;
            new.stands_by().await?;
            let before = pulls.load(Ordering::Relaxed);
            match agents.last_mut() {
                None => {
                    first.tell_to_end()?;
                    serves(&new).await?;
                }
                Some(old) => drop(replace(old, &mut new).await?),
            }
            agents.push(new);
            until("a pull is done", SOON, async || (pulls.load(Ordering::Relaxed) > before).then_some(())).await?;
        }
        done.store(true, Ordering::Relaxed);
        let entry = node.hosts_dir().join("_default/hosts.toml");
        ensure!(std::fs::read_to_string(entry)?.contains(&node.agent()?.mirror_port().to_string()));
        anyhow::Ok(agents)
    };
    let (pulled, upgraded) = tokio::join!(pulling, upgrading);
    // What has failed first says why.
    pulled?;
    upgraded?;
    Ok(())
}

/// Requests one after the other by many at once, each on a connection of its own: none is refused, none waits long.
async fn nobody_is_refused(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let image = Image::one_layer(2, 3);
    registry.add(&image, "acme/app", "v1");
    let mut node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    registry.refuse();
    let old = node.agent_mut()?;
    let url = format!("{}/v2/acme/app/blobs/{}?ns=reg.test", old.mirror(), image.largest().digest);
    let (done, bytes) = (Arc::new(AtomicBool::new(false)), image.largest().bytes.clone());
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let (done, url, bytes) = (Arc::clone(&done), url.clone(), bytes.clone());
            tokio::spawn(async move {
                let (mut longest, mut count) = (Duration::ZERO, 0);
                while !done.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let reply = larder_integration::Http::new().get(&url).await?.expect(StatusCode::OK)?;
                    ensure!(reply.body == bytes);
                    longest = longest.max(begun.elapsed());
                    count += 1;
                }
                Ok((longest, count))
            })
        })
        .collect();
    let mut took = Vec::new();
    let mut agents: Vec<Agent> = Vec::new();
    for round in 0..6 {
        let mut new = node.agent()?.beside(&round.to_string())?;
        new.launch()?;
        new.stands_by().await?;
        let old = match agents.last_mut() {
            None => node.agent_mut()?,
            Some(last) => last,
        };
        // Whoever is let in and asks for nothing holds nobody up.
        let _silent = tokio::net::TcpStream::connect(("127.0.0.1", old.mirror_port())).await?;
        let begun = Instant::now();
        took.push(replace(old, &mut new).await?);
        ensure!(begun.elapsed() < Duration::from_secs(5), "the old one ended after {:?}", begun.elapsed());
        agents.push(new);
    }
    done.store(true, Ordering::Relaxed);
    let (mut longest, mut count) = (Duration::ZERO, 0);
    for task in asking {
        let (slowest, some) = task.await??;
        longest = longest.max(slowest);
        count += some;
    }
    println!("{count} requests, the slowest {longest:?}; from SIGTERM to the next agent's answer {took:?}");
    ensure!(longest < Duration::from_secs(2), "a request took {longest:?}");
    Ok(())
}

/// What arrives when the end comes is gone on with, not begun anew.
async fn a_pull_that_is_cut_short_goes_on_with_the_next_agent(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(3, 48);
    registry.add(&image, "acme/app", "v1");
    registry.fault(When::get(image.largest()), Fault::Trickle(16 * MEBIBYTE));
    let mut node = case.node_of_the_agent_alone(&registry).await?;
    let digest = &image.largest().digest;
    let mut new = node.agent()?.beside("new")?;
    new.launch()?;
    new.stands_by().await?;
    let old = node.agent.as_mut().unwrap();
    let some = async || (registry.sent(digest) > 12 * MEBIBYTE).then_some(());
    let upgrade = async {
        until("some of it has arrived", Duration::from_secs(30), some).await?;
        replace(old, &mut new).await
    };
    let (took, pulled) = tokio::join!(upgrade, node.containerd.pull("reg.test/acme/app:v1"));
    pulled?;
    println!("the next agent served after {:?}", took?);
    let (sent, length) = (registry.sent(digest), image.largest().bytes.len() as u64);
    ensure!(sent <= length + 4 * MEBIBYTE, "{} MiB were fetched twice", (sent - length) / MEBIBYTE);
    Ok(())
}

/// Killed, it hands nothing over; but the next one holds the door already.
async fn the_agent_before_is_killed(case: Case) -> Result<()> {
    let (_registry, mut node) = one_that_has_all(case, 4).await?;
    let mut new = node.agent()?.beside("new")?;
    new.launch()?;
    new.stands_by().await?;
    node.containerd.wipe().await?;
    node.agent_mut()?.kill();
    node.containerd.pull("reg.test/acme/app:v1").await?;
    serves(&new).await
}

/// Told to end, it does nothing at all: the process that watches it ends it, and the next one takes over. Until then
/// containerd is on its own, and no pull hangs.
async fn the_agent_before_hangs(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (one, two) = (Image::one_layer(5, 1), Image::one_layer(6, 1));
    registry.add(&one, "acme/one", "v1");
    registry.add(&two, "acme/two", "v1");
    let mut node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/one:v1").await?;
    let mut new = node.agent()?.beside("new")?;
    new.launch()?;
    new.stands_by().await?;
    node.agent()?.freeze()?;
    // Without an answer at the mirror's port, the agent that is frozen is ended within seconds; and the next one is there.
    let begun = Instant::now();
    node.containerd.pull("reg.test/acme/two:v1").await?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "the pull took {:?}", begun.elapsed());
    serves(&new).await?;
    ensure!(new.probe("live").await? && new.probe("ready").await?);
    let old = node.agent_mut()?;
    until("the old one has ended", SOON, async || (!old.is_running()).then_some(())).await
}

/// A roll-out that is undone before the old agent was told to end.
async fn one_that_waits_may_be_taken_back(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(7, 1);
    registry.add(&image, "acme/app", "v1");
    let node = case.node_of_the_agent_alone(&registry).await?;
    let mut new = node.agent()?.beside("new")?;
    new.launch()?;
    new.stands_by().await?;
    ensure!(new.probe("live").await?);
    let status = new.command(&["status"]).await?;
    ensure!(String::from_utf8_lossy(&status.stderr).contains("waits for the cache"), "{status:?}");
    new.stop()?;
    ensure!(node.agent()?.probe("ready").await?);
    node.containerd.pull("reg.test/acme/app:v1").await?;
    // A configuration that doesn't hold is found before anything waits for it.
    let wrong = node.agent()?.beside("wrong")?;
    std::fs::write(wrong.config(), std::fs::read_to_string(wrong.config())? + "\n[[registry]]\nname = \"a b\"\n")?;
    let refused = wrong.command(&["run"]).await?;
    ensure!(!refused.status.success(), "{refused:?}");
    Ok(())
}

/// Two new ones at once: one of them serves, and the other is ready to take over from it.
async fn two_that_wait(case: Case) -> Result<()> {
    let (_registry, mut node) = one_that_has_all(case, 8).await?;
    let mut agents = [node.agent()?.beside("one")?, node.agent()?.beside("two")?];
    for agent in &mut agents {
        agent.launch()?;
        agent.stands_by().await?;
    }
    node.agent_mut()?.stop()?;
    let shows = async |agent: &Agent| agent.command(&["status"]).await.is_ok_and(|output| output.status.success());
    let first = until("one of them serves", SOON, async || {
        for (n, agent) in agents.iter().enumerate() {
            if shows(agent).await {
                return Some(n);
            }
        }
        None
    })
    .await?;
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    let other = 1 - first;
    ensure!(!shows(&agents[other]).await, "both serve");
    agents[other].stands_by().await?;
    // Whoever waits asks the one that serves now for its door.
    let follows = async || agents[first].log().contains("another agent waits to take over").then_some(());
    until("the other one follows", SOON, follows).await?;
    agents[first].stop()?;
    serves(&agents[other]).await?;
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    Ok(())
}

/// `mirror.listen` was changed: there is no door to hand over, and the one that waits is ready all the same, while the one
/// before it serves at its own port. Were it not, a roll-out would never end that one.
async fn the_next_one_has_another_port(case: Case) -> Result<()> {
    let (_registry, mut node) = one_that_has_all(case, 9).await?;
    let mut new = node.agent()?.beside("new")?;
    new.move_mirror()?;
    new.launch()?;
    new.stands_by().await?;
    let entries = ["_default", "reg.test"].map(|folder| node.hosts_dir().join(folder).join("hosts.toml"));
    // Each, and nobody else, in both.
    let named = |agent: &Agent, other: &Agent| -> Result<()> {
        for path in &entries {
            let entry = std::fs::read_to_string(path)?;
            let is_named = entry.contains(&agent.address()) && !entry.contains(&other.address());
            ensure!(is_named, "{}: {entry}", path.display());
        }
        Ok(())
    };
    named(node.agent()?, &new).context("it waits, and has entered itself")?;
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;

    let mut old = node.agent.take().unwrap();
    old.stop()?;
    serves(&new).await?;
    until("the new one has entered itself", SOON, async || new.probe("ready").await.is_ok_and(|yes| yes).then_some(()))
        .await?;
    named(&new, &old)?;
    ensure!(new.probe("live").await?);
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    Ok(())
}
