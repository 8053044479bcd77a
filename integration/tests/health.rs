//! What the agent says of the images that are here, and how often it asks for that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_integration::{
    Agent, AgentConfig, Challenge, Fault, FaultRegistry, Folder, Image, Login, Registry, When, until,
};
use serde_json::{Value, json};

use crate::keep::{collect, gone_at_containerd};
use crate::support::{Case, on_every_containerd, run};

on_every_containerd!(over tls:
    says_what_a_registry_says,
    says_what_is_protected_without_it,
    says_what_is_protected_of_what_is_private,
);
on_every_containerd!(over tls by one: says_what_is_lost);

const APP: &str = "reg.test/acme/app:v1";
/// A check comes once in an interval, here ten seconds, and is shown within a second.
const SHOWN: Duration = Duration::from_secs(40);

/// Waits until a metric of an image is so.
async fn shows(agent: &Agent, name: &str, labels: &[&str], value: f64) -> Result<()> {
    let labels: Vec<&str> = labels.iter().copied().chain(["image=\"reg.test/acme/app:v1\""]).collect();
    let waited = until(&format!("{name}{labels:?} is {value}"), SHOWN, async || {
        let metrics = agent.metrics().await.ok()?;
        (metrics.has("larder_image_status") && metrics.sum(name, &labels) == value).then_some(())
    })
    .await;
    let Err(error) = waited else { return Ok(()) };
    let shown = agent.http().get(&format!("{}/metrics", agent.metrics_url())).await?;
    let shown = String::from_utf8_lossy(&shown.body).into_owned();
    let lines: Vec<&str> = shown.lines().filter(|line| line.starts_with("larder_image")).collect();
    Err(error.context(lines.join("\n")))
}

async fn has_status(agent: &Agent, status: &str) -> Result<()> {
    shows(agent, "larder_image_status", &[&format!("status=\"{status}\"")], 1.0).await
}

fn often(config: &mut AgentConfig) {
    config.set_text("health", "interval", "10s").set_text("health", "timeout", "1s");
}

/// A registry that has it, has something else, has it no more, has had enough, wants to know who asks, is away, is back.
async fn says_what_a_registry_says(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let (image, other) = (Image::one_layer(1, 1), Image::one_layer(2, 1));
    registry.add(&image, "acme/app", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    often(&mut builder.agent);
    let node = builder.start().await?;
    node.containerd.pull(APP).await?;
    let agent = node.agent()?;
    has_status(agent, "Available").await?;
    shows(agent, "larder_image_protected", &[], 1.0).await?;
    shows(agent, "larder_image_copies", &[], 1.0).await?;
    shows(agent, "larder_image_drifted", &[], 0.0).await?;

    registry.add(&other, "acme/app", "v1");
    shows(agent, "larder_image_drifted", &[], 1.0).await?;
    has_status(agent, "Available").await?;
    registry.remove_tag("acme/app", "v1");
    has_status(agent, "NotFound").await?;
    shows(agent, "larder_image_lost", &[], 0.0).await?;
    shows(agent, "larder_image_protected", &[], 1.0).await?;
    registry.add(&image, "acme/app", "v1");
    registry.fault(When::path("manifests"), Fault::status_with(429, "Retry-After", "1"));
    has_status(agent, "QuotaExceeded").await?;
    registry.heal();
    registry.fault(When::path("manifests"), Fault::status(403));
    has_status(agent, "NoCredentials").await?;
    registry.heal();
    registry.refuse();
    has_status(agent, "Unreachable").await?;
    shows(agent, "larder_image_protected", &[], 1.0).await?;
    registry.accept()?;
    has_status(agent, "Available").await?;
    shows(agent, "larder_image_drifted", &[], 0.0).await
}

/// A real registry, from which an image is deleted. What was here before the agent counts.
async fn says_what_is_protected_without_it(case: Case) -> Result<()> {
    let mut registry = Registry::start().await?;
    let image = Image::one_layer(3, 2);
    registry.push(&image, "acme/app", "v1").await?;
    let mut builder = case.builder()?.without_agent().registry("reg.test", &registry.url())?;
    often(&mut builder.agent);
    let mut node = builder.start().await?;
    node.containerd.pull(APP).await?;
    node.install_agent().await?;
    shows(node.agent()?, "larder_image_protected", &[], 1.0).await?;
    has_status(node.agent()?, "Available").await?;
    registry.delete("acme/app", &image.root().digest).await?;
    has_status(node.agent()?, "NotFound").await?;
    registry.stop();
    has_status(node.agent()?, "Unreachable").await?;
    shows(node.agent()?, "larder_image_protected", &[], 1.0).await
}

/// The agent has no credentials of its own: whether the registry has it is known by pulls alone, and no alarm. What was
/// pulled past the agent nobody could be let in to, until somebody's credentials were seen to open it.
async fn says_what_is_protected_of_what_is_private(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let image = Image::one_layer(5, 1);
    registry.add(&image, "acme/app", "v1");
    registry.challenge(Some(Challenge::bearer().account("alice", "secret", "acme/app")));
    let mut builder = case.builder()?.without_agent().registry("reg.test", &registry.url())?;
    often(&mut builder.agent);
    let mut node = builder.start().await?;
    let alice = Login::password("alice", "secret");
    node.containerd.pull_as(APP, &alice).await?;
    node.install_agent().await?;
    let agent = node.agent()?;
    has_status(agent, "NoCredentials").await?;
    shows(agent, "larder_image_copies", &[], 1.0).await?;
    shows(agent, "larder_image_protected", &[], 0.0).await?;

    node.containerd.pull_as(APP, &alice).await?;
    shows(agent, "larder_image_protected", &[], 1.0).await?;
    // Whose password is wrong takes nothing from who has the right one.
    ensure!(node.containerd.pull_as(APP, &Login::password("mallory", "guess")).await.is_err());
    has_status(agent, "NoCredentials").await?;
    shows(agent, "larder_image_protected", &[], 1.0).await?;
    shows(agent, "larder_image_lost", &[], 0.0).await?;
    registry.refuse();
    has_status(agent, "Unreachable").await?;
    shows(agent, "larder_image_protected", &[], 1.0).await?;
    node.containerd.wipe().await?;
    ensure!(node.containerd.pull(APP).await.is_err(), "it was given to nobody in particular");
    node.containerd.pull_as(APP, &alice).await.context("without the registry").map(drop)
}

/// containerd has unpacked it and discarded its layers, and the registry has it no more: it runs, and nobody has it.
async fn says_what_is_lost(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(4, 1);
    registry.add(&image, "acme/app", "v1");
    let mut builder = case.builder()?.without_agent().registry("reg.test", &registry.url())?;
    builder.containerd.discards_layers = true;
    often(&mut builder.agent);
    let mut node = builder.start().await?;
    node.containerd.pull(APP).await?;
    collect(&node, &registry).await?;
    gone_at_containerd(&node, &image).await?;
    registry.forget(&image, "acme/app", "v1");
    node.install_agent().await?;
    shows(node.agent()?, "larder_image_lost", &[], 1.0).await?;
    has_status(node.agent()?, "NotFound").await?;
    shows(node.agent()?, "larder_image_protected", &[], 0.0).await?;
    shows(node.agent()?, "larder_image_copies", &[], 0.0).await?;
    // Back at its registry, it is fetched and safe.
    registry.add(&image, "acme/app", "v1");
    has_status(node.agent()?, "Available").await?;
    shows(node.agent()?, "larder_image_lost", &[], 0.0).await
}

/// An agent without containerd that keeps the image, and asks for it often.
fn that_keeps_it(folder: &Folder, registry: &FaultRegistry) -> AgentConfig {
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry("reg.test", &[&registry.url()]).set("cache", "keep", format!("[{APP:?}]"));
    often(&mut config);
    config
}

/// Checks are made with the agent's own credentials, which are read again when they change.
#[test]
fn checks_with_credentials_of_its_own() {
    run(async {
        let (registry, folder) = (FaultRegistry::start().await?, Folder::new()?);
        registry.add(&Image::one_layer(6, 1), "acme/app", "v1");
        registry.challenge(Some(Challenge::bearer().account("alice", "wonder:land", "acme/app")));
        let (file, new) = (folder.path().join("docker.json"), folder.path().join("docker.json.new"));
        let write = |auths: Value| -> Result<()> {
            std::fs::write(&new, json!({ "auths": auths }).to_string())?;
            Ok(std::fs::rename(&new, &file)?)
        };
        // An upstream that isn't the registry's own address is shown what is meant for its host.
        let of_alice = |password: &str| {
            let credentials = json!({ "username": "alice", "password": password });
            json!({ "reg.test": credentials, (registry.host()): credentials })
        };
        write(of_alice("wonder:land"))?;
        let mut config = that_keeps_it(&folder, &registry);
        config.set("credentials", "docker_config", format!("[{file:?}]"));
        let agent = Agent::start(&folder.path().join("larder"), &config).await?;
        has_status(&agent, "Available").await?;
        write(of_alice("wrong"))?;
        has_status(&agent, "InvalidAuth").await?;
        write(json!({}))?;
        has_status(&agent, "NoCredentials").await?;
        write(of_alice("wonder:land"))?;
        has_status(&agent, "Available").await
    });
}

/// An upstream that says nothing within `health.timeout` is unreachable, and it is said why.
#[test]
fn silence_is_no_answer() {
    run(async {
        let (registry, folder) = (FaultRegistry::start().await?, Folder::new()?);
        registry.add(&Image::one_layer(7, 1), "acme/app", "v1");
        let agent = Agent::start(&folder.path().join("larder"), &that_keeps_it(&folder, &registry)).await?;
        has_status(&agent, "Available").await?;
        registry.fault(When::path("manifests"), Fault::Silent);
        has_status(&agent, "Unreachable").await?;
        let said: Value = serde_json::from_str(&agent.say(&["images", "-o", "json"]).await?)?;
        let images = said["images"].as_array().context("no images")?;
        let image = images.iter().find(|image| image["name"] == APP).with_context(|| said.to_string())?;
        ensure!(image["status"] == "Unreachable", "{image}");
        ensure!(image["upstreams"][0]["remark"] == "no answer within 1s", "{image}");
        ensure!(image["last_seen_upstream"].is_string(), "it was seen before: {image}");
        registry.heal();
        has_status(&agent, "Available").await
    });
}

/// When a registry saw requests of this method for tags, to a tenth of a second.
pub(crate) async fn watch(registry: &FaultRegistry, method: &str, seen: &mut Vec<Instant>, span: Duration) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        let now = registry.count(method, "/manifests/v");
        seen.resize(now.max(seen.len()), Instant::now());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Fails when more than `most` lie in any window.
pub(crate) fn ensure_within(seen: &[Instant], most: usize, window: Duration) -> Result<()> {
    for some in seen.windows(most + 1) {
        let took = some[most] - some[0];
        // Each time may be a tenth of a second late.
        ensure!(took + Duration::from_millis(300) >= window, "{} checks within {took:?}", most + 1);
    }
    Ok(())
}

/// Killed again and again, an agent asks no more often than it may; and it goes on asking.
#[test]
fn a_budget_holds_over_kills() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let names: Vec<String> = (1..=6).map(|n| format!("\"reg.test/acme/app:v{n}\"")).collect();
        for n in 1..=6 {
            registry.add(&Image::tiny(n), "acme/app", &format!("v{n}"));
        }
        let folder = Folder::new()?;
        let mut config = AgentConfig::without_containerd(folder.path());
        config.registry("reg.test", &[&registry.url()]).set("cache", "keep", format!("[{}]", names.join(", ")));
        // By GET, which nobody else asks for a tag with.
        config.set("health", "method", "\"GET\"").set("health", "max_per_interval", "3");
        config.set_text("health", "interval", "12s").set_text("health", "timeout", "1s");
        let mut agent = Agent::start(&folder.path().join("larder"), &config).await?;
        let mut seen = Vec::new();
        for wait in [14, 2, 3, 1, 6, 2, 13, 4, 20] {
            watch(&registry, "GET", &mut seen, Duration::from_secs(wait)).await;
            agent.kill();
            agent.start_again().await?;
        }
        // What was found is known at once, and not only when there is leave to ask for it again.
        let known = until("all are watched", SHOWN, async || {
            let metrics = agent.metrics().await.ok()?;
            (metrics.sum("larder_images_watched", &[]) == 6.0).then_some(metrics)
        })
        .await?;
        ensure!(known.sum("larder_images_watched", &["status=\"Scheduled\""]) == 0.0, "{known:?}");
        watch(&registry, "GET", &mut seen, Duration::from_secs(1)).await;
        ensure_within(&seen, 3, Duration::from_secs(12))?;
        ensure!(seen.len() >= 7, "only {} checks were made", seen.len());
        for n in 1..=6 {
            // What keeping them asked by HEAD counts as a check.
            let path = format!("/manifests/v{n}");
            ensure!(registry.count("GET", &path) + registry.count("HEAD", &path) > 0, "v{n} was never checked");
        }
        Ok(())
    });
}
