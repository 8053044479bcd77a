//! The threads that transfers run on.
//!
//! A transfer receives, writes and hashes each piece where it is, one step after the other: a piece that goes to
//! another core between two steps is read from memory again, which costs more than the steps themselves (measured:
//! writing to the page cache took three times as long from another core). The write may block on the disk, so it has
//! no place among the runtime's threads: a lane is a thread with a runtime of its own, and a disk that stalls delays
//! transfers and nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A node pulls three blobs of an image at a time; on more cores than this, links and disks are the limit.
const MOST: usize = 4;

/// The lanes, taken in turn.
pub(super) struct Lanes {
    handles: Vec<Handle>,
    next: AtomicUsize,
}

impl Lanes {
    /// Starts the threads; they end with `stop`. Where the system gives none, transfers run on the current runtime.
    pub(super) fn start(stop: &CancellationToken) -> Self {
        let count = thread::available_parallelism().map_or(1, |n| n.get().min(MOST));
        let start = |number: usize| -> std::io::Result<Handle> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let stop = stop.clone();
            thread::Builder::new()
                .name(format!("larder-lane-{number}"))
                .spawn(move || runtime.block_on(stop.cancelled_owned()))?;
            Ok(handle)
        };
        let handles: Vec<Handle> = (0..count)
            .map_while(|number| {
                start(number)
                    .inspect_err(|e| tracing::warn!(error = %e, "a thread for transfers can't be started"))
                    .ok()
            })
            .collect();
        Self { handles, next: AtomicUsize::new(0) }
    }

    /// Runs a transfer's driver to its end.
    pub(super) fn spawn(&self, tasks: &TaskTracker, driver: impl Future<Output = ()> + Send + 'static) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        match self.handles.get(turn % self.handles.len().max(1)) {
            Some(lane) => drop(tasks.spawn_on(driver, lane)),
            None => drop(tasks.spawn(driver)),
        }
    }
}
