//! The body of a manifest goes wrong at a registry that has no other upstream: an error that says so, nothing of it is kept, and
//! the next pull is right.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use larder_integration::{Agent, AgentConfig, Cut, Fault, FaultRegistry, Folder, Image, Puller, Reply, When, until};

use crate::support::run;

const REGISTRY: &str = "reg.test";
/// The longest that a reply may take to begin: for a body that comes by drops.
const HEAD_WITHIN: Duration = Duration::from_secs(25);

/// What may go wrong with a body of so many bytes, whatever the head says.
fn faults(length: u64) -> Vec<Fault> {
    let middle = length / 2;
    vec![
        Fault::CutAt(0, Cut::Close),
        Fault::CutAt(middle, Cut::Close),
        Fault::CutAt(0, Cut::Reset),
        Fault::CutAt(middle, Cut::Reset),
        Fault::StallAt(0),
        Fault::StallAt(middle),
        Fault::Trickle(10),
        Fault::Short(10),
        Fault::Long(10),
        Fault::Length(10),
        Fault::Length(-10),
        Fault::WrongByte(0),
        Fault::WrongByte(length - 1),
        Fault::Gzip,
        Fault::Header("docker-content-digest".into(), format!("sha256:{:064x}", 7)),
    ]
}

#[test]
fn by_tag_without_head() {
    run(alone(|_| "v1".to_owned()));
}

#[test]
fn by_digest() {
    run(alone(|image| image.root().digest.clone()));
}

async fn alone(reference: fn(&Image) -> String) -> Result<()> {
    let folder = Folder::new()?;
    let registry = FaultRegistry::start().await?;
    registry.knows_head(false);
    let mut config = AgentConfig::without_containerd(folder.path());
    config.set_text("mirror", "stall_timeout", "1s").registry(REGISTRY, &[&registry.url()]);
    let agent = Agent::start(&folder.path().join("agent"), &config).await?;
    let puller = Puller::new(&agent, REGISTRY, None);
    let mut kept = BTreeSet::new();
    let of_seed = |seed| Image::opaque(seed, 4096);
    let faults = faults(of_seed(0).root().bytes.len() as u64);
    for (seed, fault) in (0..).zip(faults) {
        let (image, repository) = (of_seed(seed), format!("acme/app{seed}"));
        registry.add(&image, &repository, "v1");
        let manifest = format!("manifests/{}", reference(&image));
        registry.fault(When::path(&manifest).method("GET"), fault.clone());
        let reply = puller.get(&repository, &manifest).await.with_context(|| format!("{fault:?}"))?;
        is_an_error(&reply, &registry).with_context(|| format!("{fault:?}: {reply:?}"))?;
        ensure!(registry.met() > 0, "{fault:?} wasn't met");
        ensure!(blobs(&agent)? == kept, "{fault:?}: something of it is kept");

        registry.heal();
        registry.clear_log();
        let again = async || puller.get(&repository, &manifest).await.ok()?.expect(StatusCode::OK).ok();
        let reply = match fault {
            // It may still be coming, and who joins is told of its end.
            Fault::Trickle(_) => until("it is given", Duration::from_secs(10), again).await.ok(),
            _ => again().await,
        };
        let reply = reply.with_context(|| format!("after {fault:?}"))?;
        ensure!(reply.body == image.root().bytes, "after {fault:?}: {reply:?}");
        ensure!(reply.header("docker-content-digest") == image.root().digest, "after {fault:?}: {reply:?}");
        kept.insert(image.root().digest.replace("sha256:", ""));
        ensure!(blobs(&agent)? == kept, "after {fault:?}: not what was given is kept");
    }
    agent.say(&["cache", "verify"]).await?;
    Ok(())
}

/// It came in time, and says who failed.
fn is_an_error(reply: &Reply, registry: &FaultRegistry) -> Result<()> {
    ensure!(reply.status == StatusCode::SERVICE_UNAVAILABLE, "{}", reply.status);
    ensure!(reply.to_head < HEAD_WITHIN, "it came after {:?}", reply.to_head);
    let body = String::from_utf8_lossy(&reply.body);
    // Of a digest that doesn't hold, nobody is named: it may have been more than one; nor of what still comes.
    let is_clear = |body: &str| {
        body.contains(&registry.host()) || body.contains("don't have this digest") || body.contains("reply deadline")
    };
    ensure!(body.contains("\"errors\"") && is_clear(&body), "it says {body}");
    Ok(())
}

/// The names of all that is kept.
fn blobs(agent: &Agent) -> Result<BTreeSet<String>> {
    let folder = std::fs::read_dir(agent.cache().join("blobs/sha256"))?;
    let names = folder.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}
