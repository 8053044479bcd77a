use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::batch::Batch;
use super::{Shared, file, tables};
use crate::store::locks::held;

/// Between two writes: what a power loss can take back of the index.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same when there is nothing but uses to write.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);
/// Between two tries at a disk that refuses.
const RETRY: Duration = Duration::from_secs(5);

/// Writes batches until the index is stopped; a last one then.
pub(super) fn run(shared: &Shared) {
    let mut next = Instant::now() + INTERVAL;
    loop {
        let stopping = wait(shared, next);
        let done = write_batch(shared);
        if stopping {
            break;
        }
        next = Instant::now() + if done { INTERVAL } else { RETRY };
    }
    shared.home.close();
}

/// Waits until it is time, or somebody can't wait; whether the end has come.
fn wait(shared: &Shared, next: Instant) -> bool {
    let began = Instant::now();
    let mut queue = held(&shared.queue);
    loop {
        if queue.stopped {
            return true;
        }
        let now = Instant::now();
        let only_uses = queue.pending.has_only_uses();
        let due = if only_uses { (began + IDLE_INTERVAL).max(next) } else { next };
        if queue.urgent || now >= due || (now >= next && shared.home.has_failed()) {
            return false;
        }
        // A read that failed tells nobody: it is looked for.
        let left = due.saturating_duration_since(now).min(INTERVAL);
        queue = shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Writes what is pending; whether it is on the disk.
fn write_batch(shared: &Shared) -> bool {
    if shared.home.has_failed() {
        shared.home.reopen();
    }
    if let Err(error) = shared.home.go_home() {
        debug!(%error, "the index can't go back to its place yet");
    }
    let (batch, totals, goal) = {
        let mut queue = held(&shared.queue);
        queue.urgent = false;
        let mut batch = std::mem::take(&mut queue.pending);
        batch.used.extend(held(&shared.touched).drain());
        let batch = Arc::new(batch);
        queue.writing = Some(Arc::clone(&batch));
        (batch, queue.totals, queue.taken_in)
    };
    let written =
        if batch.is_empty() { Ok(()) } else { shared.home.write(|database| tables::apply(database, &batch, totals)) };
    let mut queue = held(&shared.queue);
    queue.writing = None;
    match &written {
        Ok(()) => queue.written = goal,
        Err(_) => {
            queue.failures += 1;
            shared.metrics.index_failures.inc();
            queue.pending.put_under(&batch);
        }
    }
    drop(queue);
    shared.changed.notify_all();
    if let Err(error) = &written {
        failed(shared, &batch, error);
    }
    written.is_ok()
}

fn failed(shared: &Shared, batch: &Batch, error: &redb::Error) {
    warn!(%error, blobs = batch.blobs.len(), retry = ?RETRY, "the index was not written: its changes stay in memory");
    if let Some(error) = file::disk_error(error) {
        shared.space.note(error);
    }
    // Reads need it opened again; they are more urgent than the next write.
    shared.home.reopen();
}
