use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::aside::aside;

/// How many calls wait for the disk at once. More would only queue in the kernel instead.
const SLOTS: usize = 32;
/// How long any one of them, its wait for a slot included, may take before the disk counts as stuck.
const DEADLINE: Duration = Duration::from_secs(10);

/// The disk did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stuck;

/// Does what may block on the disk, off the runtime's threads, a bounded number at a time.
#[derive(Debug, Clone)]
pub(super) struct Hands {
    slots: Arc<Semaphore>,
}

impl Hands {
    pub(super) fn new() -> Self {
        Self { slots: Arc::new(Semaphore::new(SLOTS)) }
    }

    /// Runs `work` and waits for it. Once begun it runs to its end, whether or not anyone still waits.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stuck> {
        timeout(DEADLINE, async { self.start(work).await.ok_or(Stuck)?.await.map_err(|_| Stuck) })
            .await
            .unwrap_or(Err(Stuck))
    }

    /// The same for what takes a CPU for long, on a thread that gives way to others.
    pub(super) async fn run_aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        let done = timeout(DEADLINE, async {
            let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
            aside("larder-aside", move || {
                let done = work();
                drop(slot);
                done
            })
            .await
        });
        done.await.ok().flatten().ok_or(Stuck)
    }

    /// Begins `work` as soon as there is a slot, to be waited for by [`Hands::finish`].
    pub(super) async fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, Stuck> {
        timeout(DEADLINE, self.start(work)).await.ok().flatten().ok_or(Stuck)
    }

    async fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<JoinHandle<T>> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        Some(tokio::task::spawn_blocking(move || {
            let done = work();
            drop(slot);
            done
        }))
    }

    /// Begins `work` if there is a slot now.
    pub(super) fn try_start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(tokio::task::spawn_blocking(move || {
            let done = work();
            drop(slot);
            done
        }))
    }

    /// Waits for what was begun. Leaving early leaves the work as it is, to be waited for again.
    pub(super) async fn finish<T>(task: &mut JoinHandle<T>) -> Result<T, Stuck> {
        timeout(DEADLINE, task).await.map_or(Err(Stuck), |done| done.map_err(|_| Stuck))
    }
}
