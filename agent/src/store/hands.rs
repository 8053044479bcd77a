use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::aside::aside;
use super::locks::held;

/// How many calls wait for the disk at once. More would only queue in the kernel instead.
const SLOTS: usize = 32;
/// How long any one of them, its wait for a slot included, may take before the disk counts as stuck.
const DEADLINE: Duration = Duration::from_secs(10);

/// The store's disk did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cache's disk does not answer")]
pub struct Stuck;

/// How long nobody asks a disk that didn't answer, unless it answers before: each who asks would wait as long again.
const REST: Duration = Duration::from_secs(30);

/// Does what may block on the disk, off the runtime's threads, a bounded number at a time.
#[derive(Debug, Clone)]
pub(super) struct Hands {
    slots: Arc<Semaphore>,
    deadline: Duration,
    /// Until when the disk counts as stuck.
    rests_until: Arc<Mutex<Option<Instant>>>,
}

impl Hands {
    pub(super) fn new() -> Self {
        Self { slots: Arc::new(Semaphore::new(SLOTS)), deadline: DEADLINE, rests_until: Arc::default() }
    }

    /// Runs `work` and waits for it. Once begun it runs to its end, whether or not anyone still waits.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stuck> {
        self.in_time(async { self.start(work).await.ok_or(Stuck)?.await.map_err(|_| Stuck) }).await
    }

    /// The same for what takes a CPU for long, on a thread that gives way to others: where that one is late, it may be for
    /// want of a CPU.
    pub(super) async fn run_aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        if self.is_stuck() {
            return Err(Stuck);
        }
        let done = timeout(self.deadline, async {
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
        self.in_time(async { self.start(work).await.ok_or(Stuck) }).await
    }

    /// Begins `work` if there is a slot now.
    pub(super) fn try_start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(self.spawn(slot, work))
    }

    /// Waits for what was begun. Leaving early leaves the work as it is, to be waited for again.
    pub(super) async fn finish<T>(task: &mut JoinHandle<T>) -> Result<T, Stuck> {
        timeout(DEADLINE, task).await.map_or(Err(Stuck), |done| done.map_err(|_| Stuck))
    }

    async fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<JoinHandle<T>> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        Some(self.spawn(slot, work))
    }

    fn spawn<T: Send + 'static>(
        &self,
        slot: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let rests_until = Arc::clone(&self.rests_until);
        tokio::task::spawn_blocking(move || {
            let done = work();
            drop(slot);
            // It answers, however late.
            *held(&rests_until) = None;
            done
        })
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Stuck>>) -> Result<T, Stuck> {
        if self.is_stuck() {
            return Err(Stuck);
        }
        match timeout(self.deadline, work).await {
            Ok(done) => done,
            Err(_) => {
                *held(&self.rests_until) = Some(Instant::now() + REST);
                Err(Stuck)
            }
        }
    }

    fn is_stuck(&self) -> bool {
        held(&self.rests_until).is_some_and(|until| Instant::now() < until)
    }

    /// From now on, the disk answers nobody.
    #[cfg(test)]
    pub(super) fn hang(&self) {
        self.slots.forget_permits(SLOTS);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_hangs_is_waited_for_once_until_it_answers() {
        let hands = Hands { deadline: Duration::from_millis(100), ..Hands::new() };
        let (answers, hangs) = mpsc::channel::<()>();
        assert_eq!(hands.run(move || hangs.recv()).await, Err(Stuck));
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(hands.run(|| ()).await, Err(Stuck));
            assert!(hands.begin(|| ()).await.is_err());
            assert_eq!(hands.run_aside(|| ()).await, Err(Stuck));
        }
        assert!(begun.elapsed() < hands.deadline * 50, "nobody waits: {:?}", begun.elapsed());
        answers.send(()).unwrap();
        let answered = async {
            while hands.run(|| ()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), answered).await.unwrap();
        assert_eq!(hands.run_aside(|| 7).await, Ok(7));
    }
}
