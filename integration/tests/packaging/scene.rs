//! A machine on which the package is installed.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::Result;
use larder_integration::{FaultRegistry, Image, Machine, Network, Release, until};

use super::package::package;

pub(super) const RELEASE: Release = Release::Trixie;
pub(super) const OURS: &str = "/var/lib/larder";
const CONTAINERDS: &str = "/var/lib/containerd/io.containerd.content.v1.content";
pub(super) const DROP_IN: &str = "/etc/systemd/system/larder.service.d/test.conf";

/// A machine with containerd, and a registry beside it that the machine's own hosts.toml names.
pub(super) struct Scene {
    pub(super) machine: Machine,
    pub(super) registry: FaultRegistry,
    /// What stands in the machine's own hosts.toml.
    pub(super) hosts: String,
    pub(super) network: Network,
}

impl Scene {
    pub(super) async fn new() -> Result<Self> {
        let network = Network::new()?;
        let (here, there) = (network.host(None)?, network.host(None)?);
        let registry = FaultRegistry::start_on(&there)?;
        let machine = Machine::boot(here.namespace()).await?;
        let url = registry.url();
        let hosts = format!("server = {url:?}\n\n[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n");
        machine.write("/etc/containerd/certs.d/reg.test/hosts.toml", &hosts)?;
        machine.start_containerd(RELEASE).await?;
        Ok(Self { machine, registry, hosts, network })
    }

    /// Installs the package, or the same once more.
    pub(super) async fn install(&self) -> Result<()> {
        install(&self.machine).await
    }

    pub(super) async fn main_pid(&self) -> Result<String> {
        self.machine.property("larder", "MainPID").await
    }

    /// Waits until another process than this is up; returns which.
    pub(super) async fn started_again(&self, old: &str) -> Result<String> {
        until("the agent is started again", Duration::from_secs(30), async || {
            let state = self.machine.property("larder", "ActiveState").await.ok()?;
            let new = self.main_pid().await.ok()?;
            (state == "active" && new != old && new != "0").then_some(new)
        })
        .await
    }

    /// An image of one layer, in the registry.
    pub(super) fn image(&self, seed: u64, repository: &str) -> Image {
        let image = Image::one_layer(seed, 4);
        self.registry.add(&image, repository, "v1");
        image
    }

    pub(super) async fn pull(&self, repository: &str) -> Result<()> {
        self.machine.pull(RELEASE, &format!("reg.test/{repository}:v1")).await
    }

    /// Removes the image from containerd.
    pub(super) async fn forget(&self, repository: &str) -> Result<()> {
        let ctr = format!("/opt/tools/{RELEASE}/usr/bin/ctr");
        let name = format!("reg.test/{repository}:v1");
        self.machine.run(&[&ctr, "--namespace", "k8s.io", "images", "rm", "--sync", &name]).await.map(drop)
    }

    /// The files that hold the layer, ours and containerd's, by their numbers; `None` while one of them isn't there.
    pub(super) fn held(&self, image: &Image) -> Result<Option<(u64, u64)>> {
        let number = |store: &str| std::fs::metadata(self.machine.path(&blob(store, image))).ok();
        let (ours, theirs) = (number(OURS), number(CONTAINERDS));
        Ok(ours.zip(theirs).map(|(ours, theirs)| (ours.ino(), theirs.ino())))
    }

    /// Waits until both are one file.
    pub(super) async fn linked(&self, image: &Image) -> Result<()> {
        until("the layer is linked", Duration::from_secs(20), async || {
            let (ours, theirs) = self.held(image).ok()??;
            (ours == theirs).then_some(())
        })
        .await
    }
}

/// The file that holds the layer, in one of the two stores.
pub(super) fn blob(store: &str, image: &Image) -> String {
    format!("{store}/blobs/{}", image.largest().digest.replace(':', "/"))
}

pub(super) async fn install(machine: &Machine) -> Result<()> {
    std::fs::copy(package().await?, machine.path("/tmp/larder.deb"))?;
    machine.run(&["dpkg", "--install", "/tmp/larder.deb"]).await?;
    Ok(std::fs::remove_file(machine.path("/tmp/larder.deb"))?)
}
