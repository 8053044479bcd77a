use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::adopt::Adoption;
use super::dir::{Applied, Entry, HostsDir, Outcome};
use super::error::HostsError;
use super::pace::Pace;
use super::sight::Sight;

/// How often we look without having been told: mounts and links into other folders tell nothing.
const RESCAN: Duration = Duration::from_secs(10);

/// Keeps the entries as they should be until `stop`: applies them at the start, when `entry` changes, and when somebody
/// changes, adds or removes a file or a folder. `changed` is called after the first time, after everything that changed
/// the disk, and when a failure begins or ends; not while all stays as it is. `adoption` looks each time before anything
/// is written.
///
/// Where somebody else undoes each change of ours, the waits between them grow up to a minute, and the log says so once.
pub async fn watch(
    hosts: Arc<HostsDir>,
    mut entry: watch::Receiver<Arc<Entry>>,
    adoption: Option<Arc<Adoption>>,
    changed: impl Fn(&Result<Applied, HostsError>) + Send,
    stop: CancellationToken,
) {
    let sight = Arc::new(Sight::open());
    let mut pace = Pace::default();
    let mut entry_lives = true;
    let mut failures = None;
    let mut ours_to_write = true;
    while !stop.is_cancelled() {
        let wanted = Arc::clone(&entry.borrow_and_update());
        let Some((result, blind_spot)) = look(&hosts, &sight, adoption.as_ref(), wanted).await else { return };
        if let Ok(applied) = &result {
            hosts.metrics().applied(applied);
            say(applied);
            if !ours_to_write {
                count(&hosts, applied, &mut pace);
            }
        }
        let now_failing = failing(&result);
        if result.as_ref().is_ok_and(Applied::changed) || failures.as_ref() != Some(&now_failing) {
            match &result {
                Ok(_) => now_failing.iter().for_each(|(folder, error)| {
                    tracing::warn!(folder, error, "the entry in hosts.toml could not be written");
                }),
                Err(error) => tracing::error!(error = error.with_source(), "containerd isn't told of the mirror"),
            }
            changed(&result);
        }
        failures = Some(now_failing);
        ours_to_write = false;

        let rescan = if blind_spot { Duration::ZERO } else { RESCAN };
        tokio::select! {
            () = stop.cancelled() => return,
            still = entry.changed(), if entry_lives => {
                entry_lives = still.is_ok();
                ours_to_write = entry_lives;
                continue;
            }
            () = sight.changed() => {}
            () = tokio::time::sleep(rescan) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            still = entry.changed(), if entry_lives => {
                entry_lives = still.is_ok();
                ours_to_write = entry_lives;
            }
            () = tokio::time::sleep(pace.wait(Instant::now())) => {}
        }
    }
}

/// Applies once; and whether something may have happened in a folder before we watched it. `None` when the runtime ends.
async fn look(
    hosts: &Arc<HostsDir>,
    sight: &Arc<Sight>,
    adoption: Option<&Arc<Adoption>>,
    entry: Arc<Entry>,
) -> Option<(Result<Applied, HostsError>, bool)> {
    let (hosts, sight, adoption) = (Arc::clone(hosts), Arc::clone(sight), adoption.cloned());
    let work = tokio::task::spawn_blocking(move || {
        // What happens from here on is told again.
        sight.follow(hosts.dir());
        sight.drain();
        if let Some(adoption) = adoption {
            adoption.look();
        }
        let applied = hosts.apply(&entry);
        let blind_spot = sight.follow(hosts.dir());
        (applied, blind_spot)
    });
    match work.await {
        Ok(done) => Some(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}

fn say(applied: &Applied) {
    for folder in &applied.folders {
        match folder.outcome {
            Ok(Outcome::Written) => {
                tracing::info!(folder = folder.name, "hosts.toml written");
                for warning in &folder.warnings {
                    tracing::warn!(folder = folder.name, "{warning}");
                }
            }
            Ok(Outcome::Restored) => tracing::info!(folder = folder.name, "hosts.toml restored"),
            Ok(Outcome::Unchanged) | Err(_) => {}
        }
    }
}

fn count(hosts: &HostsDir, applied: &Applied, pace: &mut Pace) {
    for folder in applied.folders.iter().filter(|f| matches!(f.outcome, Ok(Outcome::Written))) {
        hosts.count_rewrite();
        if pace.rewrote(&folder.name, Instant::now()) {
            tracing::warn!(
                folder = folder.name,
                "somebody else keeps changing hosts.toml; larder writes its entry ever more slowly"
            );
        }
    }
}

/// The failures as text, to see whether they are the same as before.
fn failing(result: &Result<Applied, HostsError>) -> Vec<(String, String)> {
    match result {
        Ok(applied) => applied.failures().map(|(folder, error)| (folder.to_owned(), error.with_source())).collect(),
        Err(error) => vec![(String::new(), error.with_source())],
    }
}
