//! A machine whose folders are its own, as its network is.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::output_within;
use crate::{Folder, Host, say};

/// How long a command in it may take.
const COMMAND: Duration = Duration::from_secs(60);

/// What a machine has of its own. The rest is the real one's: programs, and their libraries.
const OWN: [&str; 4] = ["/etc", "/run", "/var/lib", "/var/log"];

/// Of the real machine's `/etc`: who is who, and whom to trust.
const COPIED: [&str; 5] = ["passwd", "group", "nsswitch.conf", "ssl", "ca-certificates.conf"];

/// What kubelet sets in the kernel. There is one kernel: it finds set what it would set.
const KERNEL: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A [`Host`] that also sees folders of its own in the places where every machine has them, so that a program can be
/// told `/var/lib/containerd` and many can run side by side. From outside, [`NodeMachine::path`] leads into them. Mounts
/// that are made inside stay inside, and end with it. Dropped, everything that runs inside is killed.
#[derive(Debug)]
pub struct NodeMachine {
    host: Host,
    mounts: Arc<File>,
    // The last to go: when it does, nothing is mounted any more that could be seen from outside.
    folder: Folder,
}

impl NodeMachine {
    /// A new one at this place of the network. Its resolver knows nobody to ask.
    pub fn new(host: &Host) -> Result<Self> {
        let folder = Folder::new()?;
        let mut script = "mount --make-rprivate /\n".to_owned();
        for own in OWN {
            let outside = within(folder.path(), own);
            std::fs::create_dir_all(&outside)?;
            script += &format!("mount --bind {} {own}\n", outside.display());
        }
        for (flag, value) in KERNEL {
            let (shown, real) = (folder.path().join("kernel").join(flag), Path::new("/proc/sys").join(flag));
            std::fs::create_dir_all(shown.parent().context("a flag in a folder")?)?;
            std::fs::write(&shown, value)?;
            if real.exists() {
                script += &format!("mount --bind {} {}\n", shown.display(), real.display());
            }
        }
        // As systemd has it: mounts reach containers that ask for them, and come back from those.
        script += "mount --make-rshared /\n";
        let etc = within(folder.path(), "/etc");
        for name in COPIED {
            let from = Path::new("/etc").join(name);
            if from.exists() {
                say(Command::new("cp").arg("-a").args([&from, &etc]))?;
            }
        }
        std::fs::write(etc.join("hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
        std::fs::write(etc.join("resolv.conf"), "")?;

        // A thread can have mounts of its own; the thread ends, the file stays.
        let made = std::thread::scope(|scope| {
            let unshared = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS)?;
                say(Command::new("sh").args(["-e", "-c", &script]))?;
                File::open("/proc/thread-self/ns/mnt").context("opening a mount namespace")
            });
            unshared.join().unwrap_or_else(|_| bail!("a panic in a mount namespace"))
        });
        let mounts = Arc::new(made.context("making a machine")?);
        Ok(Self { host: host.clone(), mounts, folder })
    }

    /// Where it is on the network.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where the test finds what is at one of the machine's own paths.
    pub fn path(&self, inside: &str) -> PathBuf {
        within(self.folder.path(), inside)
    }

    /// What runs the arguments that follow inside.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        let mounts = format!("--mount=/proc/{}/fd/{}", std::process::id(), self.mounts.as_raw_fd());
        let [program, network, end] = self.host.namespace().wrapper();
        vec![program, network, mounts, end]
    }

    /// Runs a program inside to its end.
    pub async fn run(&self, program: &Path, arguments: &[&str]) -> Result<Output> {
        let wrapper = self.wrapper();
        let mut command = tokio::process::Command::new(&wrapper[0]);
        output_within(COMMAND, command.args(&wrapper[1..]).arg(program).args(arguments)).await
    }

    /// Every process on this machine: those whose network is the machine's, whoever started them.
    pub fn processes(&self) -> Vec<i32> {
        let network = |path: PathBuf| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        let own = network(self.host.namespace().path());
        let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
        let ids = processes.flatten().filter_map(|process| process.file_name().to_str()?.parse().ok());
        ids.filter(|id| own.is_some() && network(format!("/proc/{id}/ns/net").into()) == own).collect()
    }

    /// SIGKILL to every process on it, until none is left.
    pub fn kill_all(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        // Again, for what was being started.
        loop {
            let processes = self.processes();
            if processes.is_empty() || Instant::now() > deadline {
                return;
            }
            for id in processes {
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for NodeMachine {
    fn drop(&mut self) {
        self.kill_all();
    }
}

fn within(folder: &Path, inside: &str) -> PathBuf {
    folder.join("root").join(inside.trim_start_matches('/'))
}
