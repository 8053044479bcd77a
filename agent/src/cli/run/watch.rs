use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::notify;
use super::word::{self, Hearer};
use crate::config::{Config, reachable};

/// How long an answer may take. Within it, containerd's pulls wait.
const PATIENCE: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(1);
/// How long the agent may take until it answers for the first time.
const START: Duration = Duration::from_secs(60);
/// How long it may take to end once it is told to.
const END: Duration = Duration::from_secs(45);

/// What `sysexits.h` calls an internal error: the agent hung and was ended.
const HUNG: u8 = 70;

/// Starts the agent and watches it until it ends. Its exit status is ours.
pub(super) fn run(config: &Config, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    super::super::block_on(watch(config.mirror.listen, file))?
}

async fn watch(mirror: SocketAddr, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (hearer, stdin) = word::channel()?;
    let mut child = start(file, stdin).context("the agent can't be started")?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw).context("the agent has no pid")?;
    tokio::select! {
        status = child.wait() => return Ok(code(status?)),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = hangs(mirror, hearer) => {
            tracing::error!(%mirror, "the mirror does not answer: the agent is ended, and containerd goes to its upstreams");
            child.kill().await?;
            return Ok(ExitCode::from(HUNG));
        }
    }
    notify::stopping();
    // It may be gone already.
    let _ = kill(pid, Signal::SIGTERM);
    match timeout(END, child.wait()).await {
        Ok(status) => Ok(code(status?)),
        Err(_) => {
            tracing::error!("the agent does not end by itself; it is ended");
            child.kill().await?;
            Ok(ExitCode::from(HUNG))
        }
    }
}

fn start(file: Option<&Path>, stdin: Stdio) -> std::io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("larder").args(["run", "--unwatched", "--telling"]).stdin(stdin);
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    // glibc keeps an arena for each thread, and what large buffers leave in them: a third of the memory of a busy agent.
    // And it maps and unmaps each buffer of more than 128 KiB, which costs a page fault for every 4 KiB received.
    command
        .env("MALLOC_ARENA_MAX", "2")
        .env("MALLOC_MMAP_THRESHOLD_", "4194304")
        .env("MALLOC_TRIM_THRESHOLD_", "8388608");
    // The service manager hears of it through us alone, and not from a program that it starts.
    command.env_remove(notify::SOCKET);
    // Of its own group, so that an interrupt from the terminal arrives once, through us.
    command.process_group(0).kill_on_drop(true).spawn()
}

fn code(status: ExitStatus) -> ExitCode {
    match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => {
            tracing::error!(%status, "the agent was ended");
            ExitCode::FAILURE
        }
    }
}

/// How the mirror's port takes a request.
enum Answer {
    /// Something comes back. That a connection is closed at once is an answer too: the mirror is full, not stuck.
    Some,
    /// No connection. Harmless: containerd goes on to its next host at once. An agent that ends by itself is so.
    Refused,
    /// It is accepted, and nothing comes back: what containerd would wait for.
    Silence,
}

/// Ends when the mirror takes a request and gives no answer in time, or never begins to listen; or when the agent doesn't
/// even say that it waits for its turn.
async fn hangs(mirror: SocketAddr, mut hearer: Hearer) {
    if !hearer.serves().await {
        return;
    }
    tokio::select! {
        () = is_silent(mirror) => {}
        never = tell_when_ready(hearer) => match never {},
    }
}

/// The service is up once writing hosts.toml has been tried.
async fn tell_when_ready(mut hearer: Hearer) -> Infallible {
    hearer.is_ready().await;
    notify::ready().await;
    std::future::pending().await
}

async fn is_silent(mirror: SocketAddr) {
    let address = reachable(mirror);
    let started = Instant::now();
    let mut has_answered = false;
    loop {
        match ask(address).await {
            Answer::Some => {
                has_answered = true;
                notify::alive();
                sleep(EVERY).await;
            }
            Answer::Refused if has_answered => sleep(EVERY).await,
            Answer::Refused if started.elapsed() < START => sleep(Duration::from_millis(100)).await,
            Answer::Refused | Answer::Silence => return,
        }
    }
}

/// Whether somebody answers at the mirror's port.
pub(super) async fn answers(mirror: SocketAddr) -> bool {
    matches!(ask(reachable(mirror)).await, Answer::Some)
}

async fn ask(mirror: SocketAddr) -> Answer {
    let exchange = async {
        let Ok(mut stream) = TcpStream::connect(mirror).await else { return Answer::Refused };
        let request = b"GET /v2/ HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n";
        let mut answer = [0; 12];
        // An error is a connection that was closed.
        let _ = stream.write_all(request).await;
        let _ = stream.read(&mut answer).await;
        Answer::Some
    };
    timeout(PATIENCE, exchange).await.unwrap_or(Answer::Silence)
}
