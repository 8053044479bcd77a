use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Canary, Report, Verdict};
use crate::containerd::client::Client;

/// How long one canary pull may take. containerd's own dial to a host that doesn't answer takes 30 s.
const PULL: Duration = Duration::from_secs(40);
/// How often the socket is looked at for a restart of containerd.
const LOOK: Duration = Duration::from_secs(2);
/// After a proof that found nothing out, the next comes so soon; each further one after twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(5);

impl Canary {
    /// Proves at once; then whenever `changed` is notified (hosts.toml was written) or containerd has restarted; and
    /// every `interval`, a tenth more or less. While containerd can't be asked, asks again sooner. Ends on `shutdown`;
    /// a zero `interval` ends it at once: the canary is off.
    pub async fn watch(&self, client: &Client, interval: Duration, changed: &Notify, shutdown: &CancellationToken) {
        if interval.is_zero() {
            return;
        }
        let rounds = self.rounds(client, interval, changed);
        shutdown.run_until_cancelled(rounds).await;
    }

    async fn rounds(&self, client: &Client, interval: Duration, changed: &Notify) {
        let mut retry = FIRST_RETRY;
        let mut previous = None;
        loop {
            let socket = identity(client.socket()).await;
            let report = self.prove(client, PULL).await;
            log(&report, previous.as_ref());
            let pause = if matches!(report.verdict, Verdict::Unknown { .. }) {
                let pause = retry.min(interval);
                retry = (retry * 2).min(interval);
                pause
            } else {
                retry = FIRST_RETRY;
                interval.mul_f64(rand::random_range(0.9..1.1))
            };
            previous = Some(report.verdict);
            let due = Instant::now() + pause;
            tokio::select! {
                () = sleep_until(due) => {}
                () = changed.notified() => {}
                () = another(client.socket(), socket) => retry = FIRST_RETRY,
            }
        }
    }
}

/// Once for each change of the verdict; a proof that says the same again is only of interest while debugging.
fn log(report: &Report, previous: Option<&Verdict>) {
    let took_ms = report.took.as_millis();
    // By the word: the errors name another tag each time.
    if previous.map(Verdict::word) == Some(report.verdict.word()) {
        tracing::debug!(verdict = report.verdict.word(), took_ms, "canary pull");
        return;
    }
    match &report.verdict {
        Verdict::Used => tracing::info!(took_ms, "containerd pulls through this mirror"),
        Verdict::Failing { pull_error } => {
            tracing::warn!(error = pull_error, took_ms, "containerd came to this mirror, but its pull failed");
        }
        Verdict::Unused { pull_error } => tracing::error!(
            error = pull_error,
            took_ms,
            "containerd does not pull through this mirror; `larder doctor` says why"
        ),
        Verdict::Unknown { reason } => {
            tracing::warn!(reason, "whether containerd pulls through this mirror could not be found out");
        }
    }
}

/// What a restart changes: containerd makes its socket anew. Device, inode, seconds and nanoseconds of its making.
type Identity = (u64, u64, i64, i64);

async fn identity(socket: &Path) -> Option<Identity> {
    let look = tokio::fs::metadata(socket);
    let found = timeout(LOOK, look).await.ok()?.ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

/// Returns once there is another socket than the one known.
async fn another(socket: &Path, known: Option<Identity>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = identity(socket).await;
        if now.is_some() && now != known {
            return;
        }
    }
}
