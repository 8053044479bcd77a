//! The package on a machine with systemd: installed it serves, within its sandbox, and purged it is gone.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{FaultRegistry, Image, Machine, Network, Release, until};

use super::package::package;
use crate::support::{ensure_only_the_agent_asked, run};

const RELEASE: Release = Release::Trixie;
const DROP_IN: &str = "/etc/systemd/system/larder.service.d/test.conf";

#[test]
fn installed_it_serves_and_purged_it_is_gone() {
    run(async {
        let mut scene = Scene::new().await?;
        let before = scene.machine.trace()?;
        scene.install().await?;
        is_active(&scene.machine).await?;
        ensure!(scene.machine.property("larder", "UnitFileState").await? == "enabled");

        // With nothing configured: what it pulls comes through the agent, and is on the disk once.
        let image = scene.image(1, "app");
        scene.pull("app").await?;
        ensure_only_the_agent_asked(&scene.registry)?;
        ensure!(scene.registry.copies(&image) <= 1.0, "{} copies", scene.registry.copies(&image));
        scene.linked(&image).await?;
        scene.registry.refuse();
        scene.forget("app").await?;
        scene.pull("app").await.context("while the registry is down")?;
        scene.registry.accept()?;

        // The other way round: what containerd had before isn't fetched again.
        scene.machine.run(&["systemctl", "stop", "larder"]).await?;
        ensure!(scene.machine.property("containerd", "ActiveState").await? == "active", "it ends with larder");
        let other = scene.image(2, "other");
        scene.pull("other").await.context("without the agent")?;
        scene.machine.run(&["systemctl", "start", "larder"]).await?;
        scene.linked(&other).await?;

        // An upgrade: another process, and nothing that failed.
        let old = scene.main_pid().await?;
        scene.install().await?;
        is_active(&scene.machine).await?;
        ensure!(scene.main_pid().await? != old, "the old program still runs");
        ensure!(scene.machine.property("larder", "Result").await? == "success");
        ensure!(scene.machine.property("larder", "NRestarts").await? == "0");
        let journal = scene.machine.journal("larder").await?;
        ensure!(journal.contains("Started larder.service") && !journal.contains("larder.service: Failed"), "{journal}");

        scene.machine.run(&["dpkg", "--purge", "larder"]).await?;
        let left = scene.machine.trace()?.since(&before);
        ensure!(left.is_empty(), "{}", left.join("\n"));
        ensure!(scene.machine.output(&["systemctl", "cat", "larder"]).await?.status.code() == Some(1));
        ensure!(!scene.machine.path("/run/larder").exists());
        scene.pull("app").await.context("after it is gone")
    });
}

/// It is up, and waits for containerd; and the folder that it made for hosts.toml files goes with it.
#[test]
fn without_containerd_it_starts_too() {
    run(async {
        let network = Network::new()?;
        let machine = Machine::boot(network.host(None)?.namespace()).await?;
        let before = machine.trace()?;
        install(&machine).await?;
        is_active(&machine).await?;
        ensure!(machine.path("/etc/containerd/certs.d/_default/hosts.toml").exists(), "containerd may come any time");
        machine.run(&["dpkg", "--purge", "larder"]).await?;
        let left = machine.trace()?.since(&before);
        ensure!(left.is_empty(), "{}", left.join("\n"));
        Ok(())
    });
}

/// The agent by the process that watches it, and that one by systemd.
#[test]
fn what_hangs_is_started_again() {
    run(async {
        let scene = Scene::new().await?;
        // More than the 6 s in which the watcher may be silent while it waits for the agent.
        scene.machine.write(DROP_IN, "[Service]\nWatchdogSec=8\n")?;
        scene.install().await?;
        let watcher = scene.main_pid().await?;
        let agents = scene.machine.run(&["pgrep", "--parent", &watcher]).await?;
        ensure!(agents.lines().count() == 1, "{agents}");

        scene.machine.run(&["kill", "-STOP", &agents]).await?;
        let second = scene.started_again(&watcher).await.context("the agent hangs")?;
        scene.machine.run(&["kill", "-STOP", &second]).await?;
        let third = scene.started_again(&second).await.context("the watcher hangs")?;
        let journal = scene.machine.journal("larder").await?;
        ensure!(journal.contains("does not answer") && journal.contains("Watchdog timeout"), "{journal}");
        // Killed, it leaves nobody behind who would hold the port.
        scene.machine.run(&["kill", "-KILL", &third]).await?;
        let fourth = scene.started_again(&third).await.context("the watcher is killed")?;
        // Ended well, by somebody who isn't systemd.
        scene.machine.run(&["kill", "-TERM", &fourth]).await?;
        scene.started_again(&fourth).await.context("the watcher is told to end")?;
        let journal = scene.machine.journal("larder").await?;
        ensure!(journal.contains("larder.service: Deactivated successfully"), "{journal}");
        Ok(())
    });
}

/// `doctor --fix` asks at the terminal, writes what is missing, and leaves it to others to start containerd again.
#[test]
fn doctor_mends_what_it_may_and_restarts_nothing() {
    run(async {
        const FILE: &str = "/etc/containerd/config.toml";
        const AS_PACKAGED: &str = "# Mine.\nversion = 2\n";
        let scene = Scene::new().await?;
        let machine = &scene.machine;
        machine.write(FILE, AS_PACKAGED)?;
        machine.run(&["systemctl", "restart", "containerd"]).await?;
        let ctr = format!("/opt/tools/{RELEASE}/usr/bin/ctr");
        let answers = async || machine.run(&[&ctr, "version"]).await.ok();
        until("containerd answers", Duration::from_secs(20), answers).await?;
        scene.install().await?;
        let running = async || machine.run(&["systemctl", "show", "--property=MainPID,NRestarts", "containerd"]).await;
        let before = running().await?;
        let read = || std::fs::read_to_string(machine.path(FILE));
        let answer = async |answer: &str| {
            let asked = format!("echo {answer} | script --quiet --return --command 'larder doctor --fix' /dev/null");
            machine.output(&["sh", "-c", &asked]).await
        };

        let output = answer("n").await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains("[y/N]"), "{output:?}");
        ensure!(said.contains("nothing was changed") && read()? == AS_PACKAGED, "{said}");

        let output = answer("y").await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && said.contains("[y/N]"), "{output:?}");
        let mended = read()?;
        ensure!(
            mended.starts_with("# Mine.\n") && mended.contains("config_path = \"/etc/containerd/certs.d\""),
            "{mended}"
        );

        machine.write(FILE, AS_PACKAGED)?;
        let said = machine.run(&["larder", "doctor", "--fix", "--yes"]).await?;
        ensure!(!said.contains("[y/N]") && said.contains("systemctl restart containerd"), "{said}");
        ensure!(read()? == mended);
        ensure!(running().await? == before, "containerd was started again: {before}");
        Ok(())
    });
}

/// What the unit says of mounts is so.
#[test]
fn one_writable_path_is_what_links_need_and_volumes_come_free() {
    run(async {
        let scene = Scene::new().await?;
        let volume = "/var/lib/kubelet/pods/1/volumes/data";
        std::fs::create_dir_all(scene.machine.path(volume))?;
        scene.machine.run(&["mount", "-t", "tmpfs", "volume", volume]).await?;
        scene.install().await?;

        let agent = scene.main_pid().await?;
        let sees = async || scene.machine.run(&["cat", &format!("/proc/{agent}/mountinfo")]).await;
        ensure!(sees().await?.contains(volume), "the volume was there before the agent");
        scene.machine.run(&["umount", volume]).await?;
        ensure!(!sees().await?.contains(volume), "the agent holds a volume that was detached");

        // As it would be with a path for each of the two.
        std::fs::create_dir_all(scene.machine.path("/var/lib/larder"))?;
        scene.machine.write(
            DROP_IN,
            "[Service]\nReadWritePaths=\nReadWritePaths=/var/lib/larder /var/lib/containerd /etc/containerd\n",
        )?;
        scene.machine.run(&["systemctl", "daemon-reload"]).await?;
        scene.machine.run(&["systemctl", "restart", "larder"]).await?;
        let image = scene.image(3, "app");
        scene.pull("app").await?;
        let probe = "touch /var/lib/containerd/probe && ! ln /var/lib/containerd/probe /var/lib/larder/probe";
        let mounts = format!("--mount=/proc/{}/ns/mnt", scene.main_pid().await?);
        let said = scene.machine.output(&["nsenter", &mounts, "sh", "-c", probe]).await?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.contains("Invalid cross-device link"), "a link across two of them: {said}");
        let held = scene.held(&image)?;
        ensure!(held.is_none_or(|(ours, theirs)| ours != theirs), "linked, and it can't be");

        scene.machine.run(&["rm", DROP_IN]).await?;
        scene.machine.run(&["systemctl", "daemon-reload"]).await?;
        scene.machine.run(&["systemctl", "restart", "larder"]).await?;
        scene.linked(&image).await.context("with one path again")
    });
}

/// The CA and its key as systemd hands them over: the agent has them from nowhere else.
#[test]
fn peers_are_joined_by_credentials() {
    run(async {
        let scene = Scene::new().await?;
        scene.install().await?;
        scene.machine.run(&["larder", "certs", "--dir", "/etc/larder/peers"]).await?;
        scene.machine.write(
            DROP_IN,
            "[Service]\nLoadCredential=ca.pem:/etc/larder/peers/ca.pem\nLoadCredential=ca.key:/etc/larder/peers/ca.key\n\
             Environment=LARDER__PEERS__CA=%d/ca.pem LARDER__PEERS__KEY=%d/ca.key LARDER__PEERS__SEEDS=10.77.0.9:7441\n\
             InaccessiblePaths=/etc/larder/peers\n",
        )?;
        scene.machine.run(&["systemctl", "daemon-reload"]).await?;
        scene.machine.run(&["systemctl", "restart", "larder"]).await?;
        let peers = scene.machine.run(&["larder", "status", "--peers"]).await?;
        let journal = scene.machine.journal("larder").await?;
        ensure!(!journal.contains("no peers"), "{journal}");
        ensure!(peers.contains("10.77.0.1:7441"), "{peers}");
        Ok(())
    });
}

/// A machine with containerd, and a registry beside it that the machine's own hosts.toml names.
struct Scene {
    machine: Machine,
    registry: FaultRegistry,
    _network: Network,
}

impl Scene {
    async fn new() -> Result<Self> {
        let network = Network::new()?;
        let (here, there) = (network.host(None)?, network.host(None)?);
        let registry = FaultRegistry::start_on(&there)?;
        let machine = Machine::boot(here.namespace()).await?;
        let url = registry.url();
        let hosts = format!("server = {url:?}\n\n[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n");
        machine.write("/etc/containerd/certs.d/reg.test/hosts.toml", &hosts)?;
        machine.start_containerd(RELEASE).await?;
        Ok(Self { machine, registry, _network: network })
    }

    /// Installs the package, or the same once more.
    async fn install(&self) -> Result<()> {
        install(&self.machine).await
    }

    async fn main_pid(&self) -> Result<String> {
        self.machine.property("larder", "MainPID").await
    }

    /// Waits until another process than this is up; returns which.
    async fn started_again(&self, old: &str) -> Result<String> {
        until("the agent is started again", Duration::from_secs(30), async || {
            let state = self.machine.property("larder", "ActiveState").await.ok()?;
            let new = self.main_pid().await.ok()?;
            (state == "active" && new != old && new != "0").then_some(new)
        })
        .await
    }

    /// An image of one layer, in the registry.
    fn image(&self, seed: u64, repository: &str) -> Image {
        let image = Image::one_layer(seed, 4);
        self.registry.add(&image, repository, "v1");
        image
    }

    async fn pull(&self, repository: &str) -> Result<()> {
        self.machine.pull(RELEASE, &format!("reg.test/{repository}:v1")).await
    }

    /// Removes the image from containerd.
    async fn forget(&self, repository: &str) -> Result<()> {
        let ctr = format!("/opt/tools/{RELEASE}/usr/bin/ctr");
        let name = format!("reg.test/{repository}:v1");
        self.machine.run(&[&ctr, "--namespace", "k8s.io", "images", "rm", "--sync", &name]).await.map(drop)
    }

    /// The files that hold the layer, ours and containerd's, by their numbers; `None` while one of them isn't there.
    fn held(&self, image: &Image) -> Result<Option<(u64, u64)>> {
        let layer = image.largest().digest.replace(':', "/");
        let number = |folder: &str| std::fs::metadata(self.machine.path(&format!("{folder}/blobs/{layer}"))).ok();
        let ours = number("/var/lib/larder");
        let theirs = number("/var/lib/containerd/io.containerd.content.v1.content");
        Ok(ours.zip(theirs).map(|(ours, theirs)| (ours.ino(), theirs.ino())))
    }

    /// Waits until both are one file.
    async fn linked(&self, image: &Image) -> Result<()> {
        until("the layer is linked", Duration::from_secs(20), async || {
            let (ours, theirs) = self.held(image).ok()??;
            (ours == theirs).then_some(())
        })
        .await
    }
}

async fn install(machine: &Machine) -> Result<()> {
    std::fs::copy(package().await?, machine.path("/tmp/larder.deb"))?;
    machine.run(&["dpkg", "--install", "/tmp/larder.deb"]).await?;
    Ok(std::fs::remove_file(machine.path("/tmp/larder.deb"))?)
}

/// Whether the agent is up at this moment, and said so itself.
async fn is_active(machine: &Machine) -> Result<()> {
    for (name, value) in [("ActiveState", "active"), ("StatusText", "serving"), ("Type", "notify")] {
        let is = machine.property("larder", name).await?;
        ensure!(is == value, "{name} is {is:?}");
    }
    Ok(())
}
