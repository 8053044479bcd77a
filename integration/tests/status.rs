//! What people see: status, the cache's commands, metrics, configuration errors.

use std::time::Duration;

use anyhow::ensure;
use larder_integration::{FaultRegistry, Image, Node, Release, until};

use crate::support::run;

#[test]
fn commands_say_what_is_there() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let image = Image::many_layers(1, 3, 500);
        registry.add(&image, "acme/app", "v1");
        let mut node = Node::builder(Release::Bookworm)?.registry("reg.test", &registry.url())?.start().await?;
        node.containerd.pull("reg.test/acme/app:v1").await?;

        let status = node.agent()?.say(&["status"]).await?;
        ensure!(status.contains("comes to us"), "{status}");
        let listed = node.agent()?.say(&["cache", "ls", "--blobs"]).await?;
        ensure!(listed.contains("acme/app"), "{listed}");
        until("the image is listed", Duration::from_secs(30), async || {
            node.agent().ok()?.say(&["cache", "ls"]).await.ok()?.contains("reg.test/acme/app:v1").then_some(())
        })
        .await?;
        for running in [true, false] {
            if !running {
                node.agent_mut()?.stop()?;
            }
            for command in [["ls", "--json"], ["ls", "--blobs"], ["gc", "--dry-run"]] {
                node.agent()?.say(&["cache", command[0], command[1]]).await?;
            }
            for command in ["ls", "verify", "gc"] {
                node.agent()?.say(&["cache", command]).await?;
            }
        }
        Ok(())
    });
}

#[test]
fn metrics_show_pulls_and_the_process() {
    run(async {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::one_layer(2, 6), "acme/app", "v1");
        let node = Node::builder(Release::Bookworm)?.registry("reg.test", &registry.url())?.start().await?;
        node.containerd.pull("reg.test/acme/app:v1").await?;
        let metrics = node.agent()?.metrics().await?;
        for name in [
            "larder_build_info",
            "larder_canary_success",
            "larder_served_bytes_total",
            "larder_store_bytes",
            "larder_tag_answers_total",
            "larder_transfers_total",
            "larder_upstream_requests_total",
            "process_resident_memory_bytes",
        ] {
            ensure!(metrics.has(name), "{name} is missing");
        }
        Ok(())
    });
}

#[test]
fn a_wrong_configuration_is_refused_with_its_place() {
    run(async {
        let mut builder = Node::builder(Release::Bookworm)?;
        builder.agent.set("mirror", "lisen", "1");
        let folder = builder.folder().join("larder");
        let agent = larder_integration::Agent::prepare(&folder, &builder.agent)?;
        for command in [["config", "check"].as_slice(), &["run"]] {
            let output = agent.command(command).await?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success(), "{command:?}");
            ensure!(said.contains("lisen") && said.contains("larder.toml"), "{command:?}: {said}");
        }
        ensure!(!builder.hosts_dir().exists(), "something was changed before the configuration was read");
        Ok(())
    });
}
