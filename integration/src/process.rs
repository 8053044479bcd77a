//! A program that a fixture runs.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Namespace;

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

/// Runs a program that must succeed, to its end; returns what it prints. An error is all that it says.
pub fn say(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    ensure!(output.status.success(), "{command:?}: {}: {out}{}", output.status, err.trim());
    Ok(out)
}

/// Runs a program to its end, and returns what came of it; fails when that takes longer than `limit`. It is killed when
/// this is dropped.
pub(crate) async fn output_within(limit: Duration, command: &mut tokio::process::Command) -> Result<Output> {
    let output = tokio::time::timeout(limit, command.kill_on_drop(true).output()).await;
    let command = command.as_std();
    output.with_context(|| format!("{command:?} hangs"))?.with_context(|| format!("starting {command:?}"))
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

/// A running program. Dropped, it is killed with all that it has started.
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
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        environment: &[(String, String)],
        log: PathBuf,
    ) -> Result<Self> {
        Self::start_in(None, program, arguments, environment, log)
    }

    /// The same in a network namespace.
    pub fn start_in(
        namespace: Option<&Namespace>,
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        environment: &[(String, String)],
        log: PathBuf,
    ) -> Result<Self> {
        let wrapper = namespace.map(|namespace| namespace.wrapper().to_vec()).unwrap_or_default();
        Self::start_wrapped(&wrapper, program, arguments, environment, log)
    }

    /// The same by a wrapper, which runs what follows on its line.
    pub(crate) fn start_wrapped(
        wrapper: &[String],
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        environment: &[(String, String)],
        log: PathBuf,
    ) -> Result<Self> {
        let name = program.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let output = File::options().create(true).append(true).open(&log).context("opening a log")?;
        // setpriv: it dies with us, also when we are killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.args(wrapper).arg(program).args(arguments);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (reply, answer) = mpsc::sync_channel(1);
        SPAWNER.send((command, reply)).ok().context("the spawning thread is gone")?;
        let child = answer.recv()?.with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { name, child, log })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it hasn't ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether it has ended, and well.
    pub fn has_succeeded(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(status)) if status.success())
    }

    /// All that it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// SIGKILL to it and to all below it, and waits until none is left that holds a port or a lock.
    pub fn kill(&mut self) {
        let all = self.family();
        // The parent first: it must not start a child again.
        for id in &all {
            let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL);
        }
        let _ = self.child.wait();
        let deadline = Instant::now() + Duration::from_secs(5);
        // A zombie that nobody waits for holds nothing any more.
        let alive = |id: &u32| stat(*id).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z"));
        while all.iter().any(alive) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGTERM, and fails when it hasn't ended within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<()> {
        let _ = kill(Pid::from_raw(self.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() > deadline {
                bail!("{} was asked to end and hasn't within {limit:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// SIGSTOP to it and to all below it: connections are accepted, by the kernel, and nothing answers.
    pub fn freeze(&self) -> Result<()> {
        self.family().into_iter().try_for_each(|id| Ok(kill(Pid::from_raw(id.cast_signed()), Signal::SIGSTOP)?))
    }

    /// SIGCONT to it and to all below it.
    pub fn thaw(&self) -> Result<()> {
        self.family().into_iter().try_for_each(|id| Ok(kill(Pid::from_raw(id.cast_signed()), Signal::SIGCONT)?))
    }

    /// Its children.
    pub fn children(&self) -> Vec<u32> {
        children(self.id())
    }

    /// Itself, its children, theirs and so on; parents before children.
    pub fn family(&self) -> Vec<u32> {
        let mut all = vec![self.id()];
        let mut next = 0;
        while let Some(&id) = all.get(next) {
            all.extend(children(id));
            next += 1;
        }
        all
    }

    /// The CPU time so far, of it and of all below it.
    pub fn cpu_time(&self) -> Duration {
        // In the kernel's ticks of 10 ms: user and system time.
        let ticks =
            |id| stat(id).map_or(0, |fields| [11, 12].iter().filter_map(|&n| fields.get(n)?.parse::<u64>().ok()).sum());
        Duration::from_millis(10 * self.family().into_iter().map(ticks).sum::<u64>())
    }

    /// The resident memory of it and of all below it, in bytes: what each has of its own, and the pages of files, which
    /// are those of one program, once.
    pub fn resident_bytes(&self) -> u64 {
        let resident: Vec<_> = self.family().into_iter().filter_map(resident).collect();
        let own: u64 = resident.iter().map(|(own, _)| own).sum();
        own + resident.iter().map(|(_, of_files)| *of_files).max().unwrap_or(0)
    }
}

/// A process's resident memory in bytes: its own, and that of files.
fn resident(id: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some(((kibibytes("RssAnon:")? + kibibytes("RssShmem:")?) << 10, kibibytes("RssFile:")? << 10))
}

/// The children of a process, whichever thread of it started them.
fn children(id: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
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
