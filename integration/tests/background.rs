//! What the agent fetches with nobody waiting for it: a registry that has had enough is left to those who wait.

use std::time::Duration;

use anyhow::{Result, ensure};
use larder_integration::{Agent, AgentConfig, Fault, FaultRegistry, Folder, Image, When, until};

use crate::keep::kept;
use crate::support::run;

const APP: &str = "reg.test/acme/app:v1";
/// An attempt is followed by another after 36 s at the latest, and that by one after 72 s.
const TRIED: Duration = Duration::from_secs(120);

/// For an agent that is to keep the image, and has nobody else who asks for it.
fn to_keep_it(folder: &Folder, registry: &FaultRegistry) -> AgentConfig {
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry("reg.test", &[&registry.url()]).set("cache", "keep", format!("[{APP:?}]"));
    config.set_text("health", "interval", "0s");
    config
}

async fn keeper(folder: &Folder, registry: &FaultRegistry) -> Result<Agent> {
    Agent::start(&folder.path().join("larder"), &to_keep_it(folder, registry)).await
}

/// From now on the registry says with every manifest that so many pulls of a hundred are left.
fn left(registry: &FaultRegistry, remaining: u32) {
    registry.heal();
    registry.fault(When::path("/manifests/"), Fault::Quota(100, remaining));
}

async fn whole(agent: &Agent) -> Result<()> {
    until("it is whole", TRIED, async || kept(agent, APP).await?["whole"].as_bool()?.then_some(())).await
}

/// Little is left of the quota: what is left is for pulls.
#[test]
fn what_is_left_of_a_quota_is_for_those_who_wait() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let image = Image::one_layer(30, 2);
        registry.add(&image, "acme/app", "v1");
        left(&registry, 5);
        let folder = Folder::new()?;
        let agent = keeper(&folder, &registry).await?;
        until("an attempt fails", TRIED, async || {
            let failed = agent.metrics().await.ok()?.sum("larder_background_fetches_total", &["result=\"failed\""]);
            (failed >= 1.0).then_some(())
        })
        .await?;
        ensure!(registry.count("HEAD", "/manifests/v1") == 1, "{:?}", registry.requests());
        ensure!(registry.count("GET", "") == 0, "{:?}", registry.requests());
        ensure!(agent.log().contains("near their limits"), "it doesn't say why");
        let mirror = format!("{}/v2/acme/app", agent.mirror());
        let reply = agent.http().get(&format!("{mirror}/manifests/{}?ns=reg.test", image.root().digest)).await?;
        ensure!(reply.status == 200, "who waits gets {}", reply.status);
        ensure!(registry.count("GET", "/blobs/") == 0, "{:?}", registry.requests());

        // Somebody asks, and the answer says that there is more again.
        left(&registry, 90);
        let reply = agent.http().head(&format!("{mirror}/manifests/v1?ns=reg.test")).await?;
        ensure!(reply.status == 200, "{}", reply.status);
        let quota = agent.metrics().await?.sum("larder_upstream_ratelimit_remaining", &[]);
        ensure!(quota == 90.0, "{quota} are left");
        whole(&agent).await
    });
}

/// "Too many requests": the next attempt asks nobody. Who waits does.
#[test]
fn one_that_rests_is_asked_by_those_alone_who_wait() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let image = Image::one_layer(31, 2);
        registry.add(&image, "acme/app", "v1");
        registry.fault(When::any(), Fault::status_with(429, "Retry-After", "3600"));
        let folder = Folder::new()?;
        let agent = keeper(&folder, &registry).await?;
        let spared = "every upstream of reg.test is near its limit";
        until("it is left alone", TRIED, async || agent.log().contains(spared).then_some(())).await?;
        ensure!(registry.requests().len() == 1, "{:?}", registry.requests());
        let rests_until = agent.metrics().await?.sum("larder_upstream_rests_until_timestamp_seconds", &[]);
        ensure!(rests_until > 1.7e9, "it rests until {rests_until}");
        registry.heal();
        agent.say(&["prefetch", APP]).await?;
        whole(&agent).await
    });
}

/// The disk is fuller than its mark, by what others have on it: nothing is fetched that nobody waits for, nor by hand. A
/// pull gets what it asks for.
#[test]
fn above_the_disks_mark_nothing_is_fetched() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let image = Image::one_layer(32, 2);
        registry.add(&image, "acme/app", "v1");
        let folder = Folder::new()?;
        let mut config = to_keep_it(&folder, &registry);
        config.set("cache", "max_disk_percent", "1");
        let agent = Agent::start(&folder.path().join("larder"), &config).await?;
        let why = "there is no room below cache.max_disk_percent";
        until("it says why it isn't fetched", TRIED, async || agent.log().contains(why).then_some(())).await?;
        let prefetched = agent.command(&["prefetch", APP]).await?;
        let said = String::from_utf8_lossy(&prefetched.stderr).into_owned();
        ensure!(!prefetched.status.success() && said.contains(why), "{said}");
        ensure!(registry.count("GET", "") == 0, "{:?}", registry.requests());
        let layer = image.largest();
        let reply =
            agent.http().get(&format!("{}/v2/acme/app/blobs/{}?ns=reg.test", agent.mirror(), layer.digest)).await?;
        ensure!(reply.status == 200 && reply.body == layer.bytes, "who waits gets {}", reply.status);
        Ok(())
    });
}
