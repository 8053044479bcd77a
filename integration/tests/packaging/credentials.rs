//! Files that systemd hands over, by the very lines of the page that tells of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{Agent, AgentConfig, Challenge, Folder, until};

use super::package::repository;
use super::scene::{DROP_IN, Scene};
use crate::support::run;

/// The one block of the page in which this stands.
fn documented(part: &str) -> Result<String> {
    let page = std::fs::read_to_string(repository().join("systemd/README.md"))?;
    let blocks = page.split("```").skip(1).step_by(2).filter(|block| block.contains(part));
    let [block] = blocks.collect::<Vec<_>>()[..] else { anyhow::bail!("{part} stands in no block, or in several") };
    Ok(block.split_once('\n').context("an empty block")?.1.to_owned())
}

impl Scene {
    /// Starts the agent anew with this drop-in.
    async fn drop_in(&self, text: &str) -> Result<()> {
        self.machine.write(DROP_IN, text)?;
        self.machine.run(&["systemctl", "daemon-reload"]).await?;
        self.machine.run(&["systemctl", "restart", "larder"]).await.map(drop)
    }
}

/// The CA, and its key from an encrypted form: the agent has them from nowhere else, and is believed by another node.
#[test]
fn peers_are_joined_by_credentials() {
    run(async {
        let scene = Scene::new().await?;
        scene.install().await?;
        scene.machine.run(&["larder", "certs", "--dir", "/etc/larder/peers"]).await?;
        // The other node has the same files, and knows nobody until this one comes.
        let (host, folder) = (scene.network.host(None)?, Folder::new()?);
        let [ca, key] = ["ca.pem", "ca.key"].map(|file| folder.path().join(file));
        std::fs::copy(scene.machine.path("/etc/larder/peers/ca.pem"), &ca)?;
        std::fs::copy(scene.machine.path("/etc/larder/peers/ca.key"), &key)?;
        let mut config = AgentConfig::without_containerd(folder.path());
        config.namespace = Some(host.namespace().clone());
        config.set_path("peers", "ca", &ca).set_path("peers", "key", &key);
        // Without seeds and without a route it can't tell by itself.
        config.set("peers", "seeds", "[]").set_text("peers", "advertise", &host.address().to_string());
        let other = Agent::start(&folder.path().join("larder"), &config).await?;

        scene.machine.run(&["sh", "-euc", &documented("systemd-creds encrypt")?]).await?;
        ensure!(!scene.machine.path("/etc/larder/peers/ca.key").exists(), "the key is left as it was");
        let encrypted = std::fs::read(scene.machine.path("/etc/credstore.encrypted/larder.ca.key"))?;
        ensure!(!encrypted.is_empty() && !String::from_utf8_lossy(&encrypted).contains("PRIVATE KEY"));
        let seed = format!("{}:7441", host.address());
        let more = format!("Environment=LARDER__PEERS__SEEDS={seed}\nInaccessiblePaths=/etc/larder/peers\n");
        scene.drop_in(&(documented("LoadCredentialEncrypted=")? + &more)).await?;
        until("each owns something in the other's eyes", Duration::from_secs(30), async || {
            let here = scene.machine.run(&["larder", "status", "--peers"]).await.ok()?;
            let there = other.say(&["status", "--peers"]).await.ok()?;
            let owns = |shown: &str, at: &str| shown.lines().any(|line| line.contains(at) && line.contains(", owns "));
            (owns(&here, &seed) && owns(&there, "10.77.0.1:7441")).then_some(())
        })
        .await
        .context(other.log())
    });
}

/// A Docker configuration in a home folder, which the agent doesn't see: it opens a private image all the same.
#[test]
fn a_docker_configuration_is_handed_over() {
    run(async {
        let scene = Scene::new().await?;
        scene.image(5, "private");
        scene.registry.challenge(Some(Challenge::basic().account("alice", "wonder:land", "*")));
        scene.install().await?;
        let prefetch = async || scene.machine.output(&["larder", "prefetch", "reg.test/private:v1"]).await;
        ensure!(!prefetch().await?.status.success(), "it opens to anybody");

        let host = scene.registry.host();
        let auths = format!(r#"{{"auths":{{{host:?}:{{"username":"alice","password":"wonder:land"}}}}}}"#);
        scene.machine.write("/root/.docker/config.json", &auths)?;
        scene.drop_in(&documented("LARDER__CREDENTIALS__DOCKER_CONFIG")?).await?;
        until("it is opened", Duration::from_secs(30), async || prefetch().await.ok()?.status.success().then_some(()))
            .await
    });
}
