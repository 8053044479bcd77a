//! Credentials of the agent's own, for what it asks of a registry with no caller behind it: a private image is prefetched by
//! them and found to be there, from whichever source they come, and both end with them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use larder_integration::{
    Agent, AgentConfig, Challenge, Cut, Fault, FaultRegistry, Folder, Image, Puller, Upstream, When, until,
};

use crate::keep::kept;
use crate::support::run;

/// A check comes once in an interval, here ten seconds.
const SHOWN: Duration = Duration::from_secs(60);
const PLUGIN_API: &str = "credentialprovider.kubelet.k8s.io/v1";

/// Where the agent has them from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// `auths` of a Docker configuration.
    Auths,
    /// A program that a Docker configuration names.
    Helper,
    /// A plugin that kubelet's configuration names.
    Plugin,
}

impl Source {
    /// Lays its files and programs into a folder; the agent is told of them. Alice's, for this registry.
    fn lay(self, folder: &Path, registry: &str, config: &mut AgentConfig) -> Result<()> {
        fs::create_dir_all(folder)?;
        match self {
            Self::Auths => {}
            Self::Helper => {
                let answer = r#"{"Username":"alice","Secret":"wonder:land"}"#;
                let ask = format!("read host; [ \"$1\" = get ] && [ \"$host\" = '{registry}' ] || exit 1");
                program(&folder.join("docker-credential-vault"), &format!("{ask}; echo '{answer}'"))?;
                config.set_path("credentials", "helpers_dir", folder);
            }
            Self::Plugin => {
                let auth = format!(r#"{{"{registry}":{{"username":"alice","password":"wonder:land"}}}}"#);
                let kind = r#""kind":"CredentialProviderResponse","cacheKeyType":"Registry""#;
                let answer = format!(r#"{{"apiVersion":"{PLUGIN_API}",{kind},"auth":{auth}}}"#);
                let ask = format!("grep -q '\"image\":\"{registry}/acme/app\"' || exit 1");
                program(&folder.join("vault"), &format!("{ask}; echo '{answer}'"))?;
            }
        }
        match self {
            Self::Auths | Self::Helper => {
                config.set("credentials", "docker_config", format!("[{:?}]", self.file(folder)));
            }
            Self::Plugin => {
                config.set_path("credentials", "kubelet_config", &self.file(folder));
            }
        }
        Ok(())
    }

    /// Its configuration.
    fn file(self, folder: &Path) -> PathBuf {
        folder.join(if matches!(self, Self::Plugin) { "providers.yaml" } else { "config.json" })
    }

    /// Writes its configuration: with them, or without.
    fn write(self, folder: &Path, registry: &str, with: bool) -> Result<()> {
        let plugins = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:";
        let text = match (self, with) {
            (Self::Auths, true) => {
                format!(r#"{{"auths":{{"{registry}":{{"username":"alice","password":"wonder:land"}}}}}}"#)
            }
            (Self::Helper, true) => format!(r#"{{"credHelpers":{{"{registry}":"vault"}}}}"#),
            (Self::Plugin, true) => format!(
                "{plugins}\n- {{name: vault, apiVersion: {PLUGIN_API}, defaultCacheDuration: 1h, \
                 matchImages: [\"{registry}\"]}}\n"
            ),
            (Self::Auths | Self::Helper, false) => "{}".to_owned(),
            (Self::Plugin, false) => format!("{plugins} []\n"),
        };
        // As a whole: it may be read at any moment.
        let new = folder.join("new");
        fs::write(&new, text)?;
        fs::rename(&new, self.file(folder)).context("the configuration")
    }
}

fn program(path: &Path, script: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{script}\n"))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o755))?)
}

async fn has_status(agent: &Agent, image: &str, status: &str) -> Result<()> {
    let labels = [format!("image={image:?}"), format!("status={status:?}")];
    let labels = labels.each_ref().map(String::as_str);
    until(&format!("it is {status}"), SHOWN, async || {
        (agent.metrics().await.ok()?.sum("larder_image_status", &labels) == 1.0).then_some(())
    })
    .await
}

async fn open(source: Source) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::many_layers(1, 2, 1000);
    registry.add(&image, "acme/app", "v1");
    registry.challenge(Some(Challenge::bearer().account("alice", "wonder:land", "acme/app")));
    let (host, name) = (registry.host(), format!("{}/acme/app:v1", registry.host()));
    let folder = Folder::new()?;
    let files = folder.path().join("credentials");
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry(&host, &[&registry.url()]).set_text("health", "interval", "10s");
    source.lay(&files, &host, &mut config)?;
    source.write(&files, &host, false)?;
    let agent = Agent::start(&folder.path().join("larder"), &config).await?;

    let refused = agent.command(&["prefetch", &name]).await?;
    ensure!(!refused.status.success(), "without credentials it was fetched");
    ensure!(registry.count("GET", "/blobs/") == 0);
    source.write(&files, &host, true)?;
    until("it is fetched", SHOWN, async || agent.say(&["prefetch", &name]).await.ok()).await?;
    until("it is whole", SHOWN, async || kept(&agent, &name).await?["whole"].as_bool()?.then_some(())).await?;

    // What was just fetched is there; what is found later, the agent has asked for.
    has_status(&agent, &name, "Available").await?;
    source.write(&files, &host, false)?;
    has_status(&agent, &name, "NoCredentials").await?;
    source.write(&files, &host, true)?;
    has_status(&agent, &name, "Available").await?;
    ensure!(!agent.log().contains("wonder:land"), "the password is in the log");
    Ok(())
}

/// A mirror and a registry that want a password each, and the agent's file with both: what is prefetched, and what is kept by
/// its name, comes from each with its own; neither ever sees the other's.
async fn each_host_its_own(challenge: fn() -> Challenge) -> Result<()> {
    let (registry, mirror) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    registry.challenge(Some(challenge().account("alice", "of the registry", "*")));
    mirror.challenge(Some(challenge().account("bob", "of the mirror", "*")));
    let (host, image_of) = (registry.host(), |seed| Image::many_layers(seed, 2, 1000));
    let both = image_of(2);
    for (registries, image, name) in [
        (&[&registry, &mirror][..], &both, "acme/both"),
        (&[&mirror], &image_of(3), "acme/mirrored"),
        (&[&registry], &image_of(4), "acme/origin"),
        (&[&mirror], &image_of(5), "acme/kept-mirrored"),
        (&[&registry], &image_of(6), "acme/kept-origin"),
    ] {
        registries.iter().for_each(|registry| registry.add(image, name, "v1"));
    }
    // The mirror breaks off in the middle: the registry goes on.
    mirror.fault(When::get(both.largest()), Fault::CutAt(300_000, Cut::Close));
    let folder = Folder::new()?;
    let file = folder.path().join("config.json");
    let auth =
        |host: &str, name: &str, password: &str| format!(r#"{host:?}:{{"username":{name:?},"password":{password:?}}}"#);
    let (of_mirror, of_registry) =
        (auth(&mirror.host(), "bob", "of the mirror"), auth(&host, "alice", "of the registry"));
    fs::write(&file, format!(r#"{{"auths":{{{of_mirror},{of_registry}}}}}"#))?;
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry(&host, &[&mirror.url(), &registry.url()]).set_text("health", "interval", "10s");
    config.set("credentials", "docker_config", format!("[{file:?}]"));
    config.set("cache", "keep", format!("[\"{host}/acme/kept-mirrored:v1\", \"{host}/acme/kept-origin:v1\"]"));
    let agent = Agent::start(&folder.path().join("larder"), &config).await?;

    for name in ["both", "mirrored", "origin"] {
        agent.say(&["prefetch", &format!("{host}/acme/{name}:v1")]).await.context(name)?;
    }
    for name in ["both", "mirrored", "origin", "kept-mirrored", "kept-origin"] {
        let name = format!("{host}/acme/{name}:v1");
        until(&name, SHOWN, async || kept(&agent, &name).await?["whole"].as_bool()?.then_some(())).await?;
    }
    ensure!(mirror.met() > 0 && registry.has_given(&image_of(4)) && mirror.has_given(&image_of(3)));
    // Checks ask each of them too.
    has_status(&agent, &format!("{host}/acme/both:v1"), "Available").await?;
    ensure!(mirror.was_shown("bob", "of the mirror") && registry.was_shown("alice", "of the registry"));
    ensure!(!mirror.was_shown("alice", "of the registry"), "the mirror was shown the registry's password");
    ensure!(!registry.was_shown("bob", "of the mirror"), "the registry was shown the mirror's password");
    Ok(())
}

/// An expired entry of a file, and a plugin that knows better: what the first doesn't open, the second does.
async fn of_several(challenge: fn() -> Challenge) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    registry.add(&Image::many_layers(1, 2, 1000), "acme/app", "v1");
    registry.challenge(Some(challenge().account("alice", "wonder:land", "acme/app")));
    let (host, name) = (registry.host(), format!("{}/acme/app:v1", registry.host()));
    let folder = Folder::new()?;
    let files = folder.path().join("credentials");
    let mut config = AgentConfig::without_containerd(folder.path());
    config.registry(&host, &[&registry.url()]).set_text("health", "interval", "10s");
    Source::Plugin.lay(&files, &host, &mut config)?;
    Source::Plugin.write(&files, &host, true)?;
    let file = files.join("config.json");
    fs::write(&file, format!(r#"{{"auths":{{{host:?}:{{"username":"alice","password":"expired"}}}}}}"#))?;
    config.set("credentials", "docker_config", format!("[{file:?}]"));
    let agent = Agent::start(&folder.path().join("larder"), &config).await?;

    agent.say(&["prefetch", &name]).await?;
    has_status(&agent, &name, "Available").await?;
    ensure!(registry.was_shown("alice", "expired"), "it was not the first");
    fs::write(&file, "{}")?;
    Source::Plugin.write(&files, &host, false)?;
    has_status(&agent, &name, "NoCredentials").await
}

/// A helper that hangs, for the credentials of upstreams: what opens to anybody is given without it, another upstream is
/// asked in time, and where there is none the helper is blamed, not the upstream. One that answers is counted.
async fn a_helper_that_hangs() -> Result<()> {
    let (open, closed) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    [&open, &closed].iter().for_each(|registry| registry.add(&Image::one_layer(1, 1), "acme/app", "v1"));
    closed.challenge(Some(Challenge::bearer().account("alice", "wonder:land", "acme/app")));
    let folder = Folder::new()?;
    let helpers = folder.path().join("helpers");
    fs::create_dir(&helpers)?;
    program(&helpers.join("docker-credential-hanging"), "sleep 1000")?;
    let answer = r#"{"Username":"alice","Secret":"wonder:land"}"#;
    program(&helpers.join("docker-credential-vault"), &format!("echo '{answer}'"))?;
    let file = |helper: &str| -> Result<PathBuf> {
        let path = folder.path().join(format!("{helper}.json"));
        fs::write(&path, format!(r#"{{"credsStore":{helper:?}}}"#))?;
        Ok(path)
    };
    let (hanging, vault) = (file("hanging")?, file("vault")?);
    let of = |registry: &FaultRegistry| Upstream::insecure(&registry.url()).credentials(&hanging);
    let mut config = AgentConfig::without_containerd(folder.path());
    config.set_path("credentials", "helpers_dir", &helpers).set_text("mirror", "header_timeout", "2s");
    config
        .upstreams("open.test", vec![of(&open)])
        .upstreams("both.test", vec![of(&closed), Upstream::insecure(&open.url())])
        .upstreams("closed.test", vec![of(&closed)])
        .upstreams("known.test", vec![Upstream::insecure(&closed.url()).credentials(&vault)]);
    let agent = Agent::start(&folder.path().join("larder"), &config).await?;

    for name in ["open.test", "both.test", "known.test"] {
        Puller::new(&agent, name, None).fetch("acme/app", "v1").await.context(name)?;
    }
    let refused = Puller::new(&agent, "closed.test", None).get("acme/app", "manifests/v1").await?;
    let refused = refused.expect(StatusCode::SERVICE_UNAVAILABLE)?;
    let said = String::from_utf8_lossy(&refused.body);
    ensure!(said.contains("no credentials for it: docker-credential-hanging has not answered yet"), "{said}");
    let metrics = agent.metrics().await?;
    let upstream = format!("upstream={:?}", closed.host());
    ensure!(metrics.sum("larder_upstream_up", &[&upstream]) == 1.0, "the upstream is blamed:\n{}", agent.log());
    ensure!(metrics.sum("larder_upstream_breaker_transitions_total", &[&upstream, "to=\"open\""]) == 0.0);
    ensure!(metrics.sum("larder_upstream_errors_total", &[&upstream, "kind=\"credentials\""]) > 0.0);
    let labels = ["program=\"docker-credential-vault\"", "result=\"ok\""];
    ensure!(metrics.sum("larder_credential_runs_total", &labels) == 1.0, "{}", agent.exposition().await?);
    Ok(())
}

#[test]
fn a_helper_that_hangs_is_no_fault_of_the_upstreams() {
    run(a_helper_that_hangs());
}

#[test]
fn of_several_the_one_that_opens_it_is_taken_for_tokens() {
    run(of_several(Challenge::bearer));
}

#[test]
fn of_several_the_one_that_opens_it_is_taken_as_basic() {
    run(of_several(Challenge::basic));
}

#[test]
fn each_host_gets_its_own_for_tokens() {
    run(each_host_its_own(Challenge::bearer));
}

#[test]
fn each_host_gets_its_own_as_basic() {
    run(each_host_its_own(Challenge::basic));
}

#[test]
fn those_of_a_docker_configuration_open_it() {
    run(open(Source::Auths));
}

#[test]
fn those_of_a_credential_helper_open_it() {
    run(open(Source::Helper));
}

#[test]
fn those_of_kubelets_plugin_open_it() {
    run(open(Source::Plugin));
}
