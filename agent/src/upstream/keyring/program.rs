use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::error::RunError;
use super::metrics::Metrics;
use super::{Pace, Tasks};

/// The most that is read of a program's answer; real ones have a few KiB.
const MAX_ANSWER: u64 = 1 << 20;
/// The most that is kept of what it writes to standard error.
const MAX_SAID: usize = 512;
/// Programs that run at the same time: a node's cores are for its Pods.
const AT_ONCE: usize = 4;
/// How long a killed program is waited for.
const REAPING: Duration = Duration::from_secs(5);
/// A program that somebody writes at this moment is tried again so often, this far apart.
const BEING_WRITTEN: (u32, Duration) = (20, Duration::from_millis(50));

/// What runs programs: few at a time, each for a bounded time. A cheap clone.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    pub(super) pace: Pace,
    pub(super) tasks: Tasks,
    pub(super) metrics: Metrics,
    places: Arc<Semaphore>,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
    /// Set besides, and before, what the agent's own environment says.
    pub(super) env: Vec<(String, String)>,
}

/// What a program that ended has left.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) answer: Zeroizing<Vec<u8>>,
    /// Its words on standard error, on one line and shortened.
    pub(super) said: String,
}

/// The process group of a child that hasn't been waited for yet: killed as a whole when this is dropped.
struct Group(Option<Pid>);

impl Runner {
    pub(super) fn new(pace: Pace, tasks: Tasks, metrics: Metrics) -> Self {
        Self { pace, tasks, metrics, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Runs it to its end. A future that is dropped, and the end of its time, kill it and what it has started.
    pub(super) async fn run(&self, program: &Program, input: &[u8]) -> Result<Output, RunError> {
        // Everyone before us has a bounded time, and so has this wait.
        let _place = self.places.acquire().await.map_err(|_| RunError::Ending)?;
        let mut child = program.start().await?;
        let mut group = Group::of(&child);
        let outcome = timeout(self.pace.patience, converse(&mut child, &program.path, input)).await;
        let outcome = outcome
            .unwrap_or_else(|_| Err(RunError::Slow { program: program.path.clone(), after: self.pace.patience }));
        if outcome.is_ok() {
            group.disarm();
        } else {
            drop(group);
            // Leave no zombie; who can't be killed (a disk that hangs) isn't waited for.
            let _ = timeout(REAPING, child.wait()).await;
        }
        outcome
    }
}

impl Program {
    async fn start(&self) -> Result<Child, RunError> {
        let mut command = Command::new(&self.path);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let (tries, apart) = BEING_WRITTEN;
        let mut tried = 0;
        loop {
            match command.spawn() {
                Ok(child) => return Ok(child),
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tried < tries => tried += 1,
                Err(source) => return Err(RunError::Start { program: self.path.clone(), source }),
            }
            sleep(apart).await;
        }
    }
}

/// Writes the question, reads the answer to its end, and waits for the program's. Only then is it reaped: until then
/// its process group can mean no other.
async fn converse(child: &mut Child, program: &Path, input: &[u8]) -> Result<Output, RunError> {
    let pipe = |source| RunError::Pipe { program: program.to_owned(), source };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(mut stderr)) = (stdin, stdout, stderr) else {
        return Err(pipe(io::ErrorKind::BrokenPipe.into()));
    };
    let asking = async {
        // A program that doesn't want to hear the question may answer nevertheless.
        match stdin.write_all(input).await {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(pipe(e)),
            _ => {
                drop(stdin);
                Ok(())
            }
        }
    };
    let answering = async {
        let mut answer = Zeroizing::new(Vec::with_capacity(16 << 10));
        stdout.take(MAX_ANSWER + 1).read_to_end(&mut answer).await.map_err(pipe)?;
        if answer.len() as u64 > MAX_ANSWER {
            return Err(RunError::Endless { program: program.to_owned(), most: MAX_ANSWER });
        }
        Ok(answer)
    };
    let complaining = async {
        let mut said = Vec::new();
        (&mut stderr).take(MAX_SAID as u64).read_to_end(&mut said).await.map_err(pipe)?;
        // The rest is read too: a full pipe would stop the program.
        tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await.map_err(pipe)?;
        Ok(said)
    };
    let ((), answer, said) = tokio::try_join!(asking, answering, complaining)?;
    let status = child.wait().await.map_err(pipe)?;
    Ok(Output { status, answer, said: one_line(&said) })
}

/// What a program said, as it can stand in a log line: without line ends and control characters, and not endless.
pub(super) fn one_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(&said[..said.len().min(MAX_SAID)]);
    said.split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

impl Group {
    fn of(child: &Child) -> Self {
        // It leads a group of its own, which so has its id. A process that hasn't been waited for has an id.
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// It has ended by itself. Whatever it left in the background is its own affair.
    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // All gone already: as well.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}
