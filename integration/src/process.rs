//! A program that a fixture runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

// Lines of the log that a failed test shows.
const SHOWN: usize = 120;

static SHOW: AtomicBool = AtomicBool::new(false);

/// From now on, what fixtures have logged is written to standard error when they end.
pub fn show_logs() {
    SHOW.store(true, Ordering::Relaxed);
}

/// Whether [`show_logs`] was called.
pub(crate) fn logs_are_shown() -> bool {
    SHOW.load(Ordering::Relaxed)
}

type Spawn = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// Starts every process: the kernel sends the signal of a parent's death when the *thread* ends that started the
/// child, and threads of tests end early.
static SPAWNER: LazyLock<mpsc::Sender<Spawn>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<Spawn>();
    std::thread::spawn(move || {
        for (mut command, reply) in requests {
            let _ = reply.send(command.spawn());
        }
    });
    sender
});

/// A running program in a process group of its own. Dropped, the group is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; what it writes is appended to the file `log`.
    pub fn start(
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
        environment: &[(String, String)],
        log: PathBuf,
    ) -> Result<Self> {
        let name = program.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let output = File::options().create(true).append(true).open(&log).context("opening a log")?;
        // setpriv: it dies with us, also when we are killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (reply, answer) = mpsc::sync_channel(1);
        SPAWNER.send((command, reply)).ok().context("the spawning thread is gone")?;
        let child = answer.recv()?.with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { name, child, log })
    }

    /// Its id, and that of its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it hasn't ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// All that it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// SIGKILL to the whole group, and waits for the end.
    pub fn kill(&mut self) {
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// SIGTERM, and fails when it hasn't ended within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<()> {
        let _ = kill(self.group(), Signal::SIGTERM);
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() > deadline {
                bail!("{} was asked to end and hasn't within {limit:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// SIGSTOP to the whole group: it accepts connections, through the kernel, and answers nothing.
    pub fn freeze(&self) -> Result<()> {
        Ok(killpg(self.group(), Signal::SIGSTOP)?)
    }

    /// SIGCONT to the whole group.
    pub fn thaw(&self) -> Result<()> {
        Ok(killpg(self.group(), Signal::SIGCONT)?)
    }

    /// Its children, whichever thread of it started them.
    pub fn children(&self) -> Vec<u32> {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.id())) else { return Vec::new() };
        let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
    }

    /// The ids of all processes of its group.
    pub fn members(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let group = self.id().to_string();
        // Behind the name in brackets: state, parent, group.
        ids.filter(|id| stat(*id).is_some_and(|fields| fields.get(2) == Some(&group))).collect()
    }

    /// The CPU time of the whole group so far.
    pub fn cpu_time(&self) -> Duration {
        // In the kernel's ticks of 10 ms: user and system time.
        let ticks =
            |id| stat(id).map_or(0, |fields| [11, 12].iter().filter_map(|&n| fields.get(n)?.parse::<u64>().ok()).sum());
        Duration::from_millis(10 * self.members().into_iter().map(ticks).sum::<u64>())
    }

    /// The resident memory of the whole group, in bytes. Pages of files count where they are mapped.
    pub fn resident_bytes(&self) -> u64 {
        let pages = |id| {
            let statm = std::fs::read_to_string(format!("/proc/{id}/statm")).ok()?;
            statm.split(' ').nth(1)?.parse::<u64>().ok()
        };
        self.members().into_iter().filter_map(pages).sum::<u64>() * 4096
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

/// What the kernel says of a process, from its state on.
fn stat(id: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split_whitespace().map(str::to_owned).collect())
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if !logs_are_shown() {
            return;
        }
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN)..];
        eprintln!("---- {} ({} of {} lines)\n{}", self.name, shown.len(), lines.len(), shown.join("\n"));
    }
}
