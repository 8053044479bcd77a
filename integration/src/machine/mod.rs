//! A machine with systemd as its PID 1, in namespaces: for what is installed as a service.
//!
//! Its root is this machine's, seen through an overlay, so it has what this one has installed, Debian's dpkg and systemd
//! among it; what it writes lies on a disk of its own. `integration/machine/boot` puts it together.

mod trace;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use trace::Trace;

use crate::process::output_within;
use crate::{Disk, Namespace, Process, Release, require_root, tool, until};

/// How long it may take to boot.
const BOOT: Duration = Duration::from_secs(30);
/// How long a command in it may take.
const COMMAND: Duration = Duration::from_secs(60);

/// A machine that runs. Dropped, it is off, and all that it wrote is gone.
#[derive(Debug)]
pub struct Machine {
    /// The process that waits for its PID 1; that one goes with it.
    process: Process,
    systemd: u32,
    cgroup: String,
    disk: Disk,
}

impl Machine {
    /// Boots one on this network. Nothing of what this machine would start runs in it.
    pub async fn boot(network: &Namespace) -> Result<Self> {
        require_root()?;
        ensure!(Path::new("/lib/systemd/systemd").exists(), "systemd isn't installed: run integration/setup");
        let disk = Disk::small(1024)?;
        let place = disk.path().to_owned();
        let tools = tool(".")?;
        let cgroup = format!("larder-{:016x}", rand::random::<u64>());
        let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("machine/boot");
        let arguments = [place.as_os_str(), tools.as_os_str(), cgroup.as_ref()];
        let process = Process::start_in(Some(network), &boot, arguments, &[], place.join("log"))?;
        let mut machine = Self { process, systemd: 0, cgroup, disk };
        until("the machine has booted", BOOT, async || {
            machine.systemd = machine.process.children().first().copied()?;
            let state = machine.output(&["systemctl", "is-system-running"]).await.ok()?;
            (state.stdout == b"running\n").then_some(())
        })
        .await
        .with_context(|| machine.process.log())?;
        Ok(machine)
    }

    /// A file of it, as it is seen from here.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.systemd))
    }

    /// Writes a file in it, and the folders above.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().context("a file without a folder")?)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Runs a command in it, as root.
    pub async fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = tokio::process::Command::new("nsenter");
        command.args(["--all", "--target", &self.systemd.to_string(), "--"]).args(arguments);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        output_within(COMMAND, &mut command).await
    }

    /// The same for commands that must succeed; returns what it prints, without the last end of line.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments).await?;
        let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).trim().to_owned());
        ensure!(output.status.success(), "{arguments:?}: {}: {out}\n{err}", output.status);
        Ok(out)
    }

    /// What systemd says of a unit's property.
    pub async fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.run(&["systemctl", "show", "--value", "--property", name, unit]).await
    }

    /// Starts a containerd of this release as `containerd.service`, which reads `/etc/containerd/certs.d`.
    pub async fn start_containerd(&self, release: Release) -> Result<()> {
        self.write(
            "/etc/containerd/config.toml",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
        )?;
        let programs = format!("/opt/tools/{release}/usr/bin");
        self.write(
            "/etc/systemd/system/containerd.service",
            &format!(
                "[Service]\nEnvironment=PATH={programs}:/opt/tools/runc/usr/sbin:/usr/sbin:/usr/bin\n\
                 ExecStart={programs}/containerd\nDelegate=yes\nKillMode=process\n"
            ),
        )?;
        self.run(&["systemctl", "daemon-reload"]).await?;
        self.run(&["systemctl", "start", "containerd.service"]).await?;
        until("containerd answers", Duration::from_secs(20), async || {
            self.run(&[&format!("{programs}/ctr"), "version"]).await.ok()
        })
        .await
        .map(drop)
    }

    /// Pulls an image as `ctr` of this release does, through the hosts folder.
    pub async fn pull(&self, release: Release, image: &str) -> Result<()> {
        let ctr = format!("/opt/tools/{release}/usr/bin/ctr");
        let hosts = "/etc/containerd/certs.d";
        let arguments = [&ctr, "--namespace", "k8s.io", "images", "pull", "--local", "--hosts-dir", hosts, image];
        self.run(&arguments).await.map(drop)
    }

    /// What a unit has logged, and what systemd has said of it.
    pub async fn journal(&self, unit: &str) -> Result<String> {
        self.run(&["journalctl", "--no-pager", "--unit", unit]).await
    }

    /// All that it has written since it was made.
    pub fn trace(&self) -> Result<Trace> {
        Trace::of(&self.disk.path().join("upper"), &self.disk.path().join("lib"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if crate::process::logs_are_shown() && self.systemd != 0 {
            let journal =
                ["--all", "--target", &self.systemd.to_string(), "--", "journalctl", "--no-pager", "-o", "cat"];
            let journal =
                std::process::Command::new("nsenter").args(journal).args(["-n", "150", "-u", "larder"]).output();
            let journal = journal.map(|output| output.stdout).unwrap_or_default();
            eprintln!("---- its journal of larder\n{}", String::from_utf8_lossy(&journal));
        }
        self.process.kill();
        // What runs in a machine that is killed is killed by the kernel, a moment later. Its cgroups stay.
        let script = "mount -t cgroup2 none \"$1/cgroup\" && for try in $(seq 100); do \
                      find \"$1/cgroup/$2\" -depth -type d -exec rmdir {} + 2>/dev/null && exit; sleep 0.02; done";
        let mut remove = std::process::Command::new("unshare");
        remove.args(["--mount", "sh", "-c", script, "-"]).arg(self.disk.path()).arg(&self.cgroup);
        let _ = remove.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
