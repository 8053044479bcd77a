//! The package on a machine with systemd: installed it serves, within its sandbox, and purged it is gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{LarderImage, Machine, Network, until};

use super::package::repository;
use super::scene::{DROP_IN, OURS, RELEASE, Scene, blob, install};
use crate::support::{ensure_only_the_agent_asked, run};

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

        // Removed, it has let go of containerd; what it keeps stays for the day on which it is installed again.
        scene.machine.run(&["dpkg", "--remove", "larder"]).await?;
        ensure!(scene.machine.output(&["pgrep", "larder"]).await?.status.code() == Some(1), "it still runs");
        let hosts = scene.machine.path("/etc/containerd/certs.d");
        ensure!(
            std::fs::read_to_string(hosts.join("reg.test/hosts.toml"))? == scene.hosts
                && !hosts.join("_default").exists()
        );
        for stays in [blob(OURS, &image), blob(OURS, &other), "/etc/larder/larder.toml".to_owned()] {
            ensure!(scene.machine.path(&stays).exists(), "{stays} is gone");
        }
        scene.forget("app").await?;
        scene.pull("app").await.context("after it is removed")?;

        scene.machine.run(&["dpkg", "--purge", "larder"]).await?;
        let left = scene.machine.trace()?.since(&before);
        ensure!(left.is_empty(), "{}", left.join("\n"));
        ensure!(scene.machine.output(&["systemctl", "cat", "larder"]).await?.status.code() == Some(1));
        ensure!(!scene.machine.path("/run/larder").exists());
        scene.pull("app").await.context("after it is gone")
    });
}

/// Without a package: by the scripts behind `make install` and `make uninstall`, as their page says.
#[test]
fn installed_by_make_it_serves_and_uninstalled_it_is_gone() {
    run(async {
        let scene = Scene::new().await?;
        let machine = &scene.machine;
        let sources = "/tmp/larder";
        let script = |name: &str| format!("{sources}/systemd/{name}");
        std::fs::create_dir_all(machine.path(&script("")))?;
        for file in ["install", "uninstall", "papers", "larder.service", "larder.toml"] {
            std::fs::copy(repository().join("systemd").join(file), machine.path(&script(file)))?;
        }
        let program = format!("{sources}/larder");
        std::fs::copy(LarderImage::binary().await?, machine.path(&program))?;

        let before = machine.trace()?;
        let said = machine.run(&[&script("install"), &program, "", "/usr/local"]).await?;
        ensure!(said.contains("systemctl daemon-reload && systemctl enable --now larder"), "{said}");
        machine.run(&["systemctl", "daemon-reload"]).await?;
        machine.run(&["systemctl", "enable", "--now", "larder"]).await?;
        is_active(machine).await?;
        let started = machine.property("larder", "ExecStart").await?;
        ensure!(started.contains("path=/usr/local/bin/larder ;"), "{started}");
        let image = scene.image(4, "app");
        scene.pull("app").await?;
        ensure_only_the_agent_asked(&scene.registry)?;
        scene.linked(&image).await?;

        let said = machine.run(&[&script("uninstall"), "", "/usr/local"]).await?;
        let [cache, configuration] = ["/var/lib/larder", "/etc/larder"];
        ensure!(said.contains(cache) && said.contains(configuration), "what is left isn't named: {said}");
        ensure!(machine.path(&blob(OURS, &image)).exists(), "the cache is gone");
        ensure!(machine.path("/etc/larder/larder.toml").exists(), "the configuration is gone");
        let mut left = machine.trace()?.since(&before);
        left.retain(|line| ![cache, configuration].iter().any(|stays| line.starts_with(&format!("+ {stays}"))));
        ensure!(left.is_empty(), "{}", left.join("\n"));
        ensure!(machine.output(&["systemctl", "cat", "larder"]).await?.status.code() == Some(1));
        ensure!(machine.output(&["pgrep", "larder"]).await?.status.code() == Some(1), "it still runs");
        scene.forget("app").await?;
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

/// A hosts folder that isn't root's: the unit's root has no capability for it, `doctor` sees that from outside, and what it
/// says to add does.
#[test]
fn a_hosts_folder_of_somebody_elses_takes_what_doctor_says() {
    run(async {
        const ADDED: &str = "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER";
        let scene = Scene::new().await?;
        let (machine, theirs) = (&scene.machine, "/etc/containerd/certs.d");
        machine.run(&["chown", "--recursive", "1000:1000", theirs]).await?;
        scene.install().await?;
        is_active(machine).await?;
        let hosts = || std::fs::read_to_string(machine.path(&format!("{theirs}/reg.test/hosts.toml")));
        ensure!(hosts()? == scene.hosts, "it has written there");
        let output = machine.output(&["larder", "doctor"]).await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains(ADDED), "{said}");

        machine.write(DROP_IN, &format!("[Service]\n{ADDED}\n"))?;
        machine.run(&["systemctl", "daemon-reload"]).await?;
        machine.run(&["systemctl", "restart", "larder"]).await?;
        let entered = async || hosts().ok()?.contains("127.0.0.1:7439").then_some(());
        until("the agent has entered itself", Duration::from_secs(20), entered).await?;
        scene.image(6, "app");
        scene.pull("app").await?;
        ensure_only_the_agent_asked(&scene.registry)?;
        let said = String::from_utf8_lossy(&machine.output(&["larder", "doctor"]).await?.stdout).into_owned();
        ensure!(!said.contains(ADDED), "{said}");
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

/// Whether the agent is up at this moment, and said so itself.
async fn is_active(machine: &Machine) -> Result<()> {
    for (name, value) in [("ActiveState", "active"), ("StatusText", "serving"), ("Type", "notify")] {
        let is = machine.property("larder", name).await?;
        ensure!(is == value, "{name} is {is:?}");
    }
    Ok(())
}
