//! Credentials of the agent's own, for what it asks of a registry with no caller behind it: a private image is prefetched by
//! them and found to be there, from whichever source they come, and both end with them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{
    Agent, AgentConfig, Challenge, Cut, Fault, FaultRegistry, Folder, Image, Login, Release, When, until,
};

use crate::keep::kept;
use crate::support::{Case, run};

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

/// Passwords live for hours: in an outage each pull brings another one. Where the node's own credentials speak for all who
/// pull on it, it is given to them, once those opened it.
async fn node_speaks(case: Case) -> Result<()> {
    const NAME: &str = "reg.test/acme/app:v1";
    let mut registry = FaultRegistry::start().await?;
    registry.add(&Image::many_layers(7, 2, 1000), "acme/app", "v1");
    let challenge = Challenge::bearer().account("ecr", "of the morning", "acme/app");
    registry.challenge(Some(challenge.account("ecr", "of the node", "acme/app")));
    let mut builder = case.builder()?;
    let file = builder.folder().join("config.json");
    let auth = format!(r#"{:?}:{{"username":"ecr","password":"of the node"}}"#, registry.host());
    fs::write(&file, format!(r#"{{"auths":{{{auth}}}}}"#))?;
    builder.agent.outage_by_node("reg.test").set("credentials", "docker_config", format!("[{file:?}]"));
    // Whatever it opens isn't by checks.
    builder.agent.set_text("health", "interval", "0s");
    let mut node = builder.registry("reg.test", &registry.url())?.start().await?;
    let at = |time: &str| Login::password("ecr", &format!("of the {time}"));
    node.containerd.pull_as(NAME, &at("morning")).await?;
    until("the node opens it too", SHOWN, async || registry.was_shown("ecr", "of the node").then_some(())).await?;
    until("it is protected", SHOWN, async || {
        (node.agent().ok()?.metrics().await.ok()?.sum("larder_image_protected", &[]) == 1.0).then_some(())
    })
    .await?;
    registry.refuse();
    node.agent_mut()?.stop()?;
    node.agent_mut()?.start_again().await?;
    for password in ["evening", "night"] {
        node.containerd.wipe().await?;
        node.containerd.pull_as(NAME, &at(password)).await.with_context(|| format!("in the {password}"))?;
    }
    node.containerd.wipe().await?;
    node.containerd.pull(NAME).await.context("with no password").map(drop)
}

#[test]
fn those_of_the_node_speak_for_who_pulls_on_it_in_an_outage() {
    run(node_speaks(Case { release: Release::Sid, tls: true }));
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
