//! What readers far ahead of a transfer's frontier wait for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::claims::NEAR;

/// The wants of one transfer's readers. Readers at the frontier have none: they are served by going on.
#[derive(Debug, Default)]
pub(super) struct Wants {
    all: Mutex<Vec<(ReaderId, Want)>>,
    /// How many there are: looked at for every piece that arrives.
    count: AtomicUsize,
    /// Where the transfer stands: the first byte that isn't there.
    frontier: AtomicU64,
    changed: Notify,
}

/// Tells one reader of a transfer from the others.
pub(super) type ReaderId = u64;

/// What a reader waits for, and how far it will read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) at: u64,
    pub(super) end: u64,
}

impl Wants {
    /// A reader waits for the byte at `at`, and will read to `end`. The driver is told if it has to do something for it.
    pub(super) fn wait(&self, reader: ReaderId, at: u64, end: u64) {
        if at <= self.frontier.load(Ordering::Relaxed).saturating_add(NEAR) {
            self.withdraw(reader);
            return;
        }
        let want = Want { at, end };
        let mut all = self.lock();
        match all.iter_mut().find(|(id, _)| *id == reader) {
            Some((_, known)) => *known = want,
            None => all.push((reader, want)),
        }
        self.count.store(all.len(), Ordering::Relaxed);
        drop(all);
        self.changed.notify_one();
    }

    /// A reader has come to `at`, without having to wait.
    pub(super) fn read_to(&self, reader: ReaderId, at: u64) {
        if !self.is_empty()
            && let Some((_, want)) = self.lock().iter_mut().find(|(id, _)| *id == reader)
        {
            want.at = at;
        }
    }

    /// A reader wants nothing more, or nothing out of turn.
    pub(super) fn withdraw(&self, reader: ReaderId) {
        if !self.is_empty() {
            let mut all = self.lock();
            all.retain(|(id, _)| *id != reader);
            self.count.store(all.len(), Ordering::Relaxed);
        }
    }

    /// The transfer stands at `frontier`.
    pub(super) fn reached(&self, frontier: u64) {
        self.frontier.store(frontier, Ordering::Relaxed);
    }

    /// Where it stands.
    pub(super) fn frontier(&self) -> u64 {
        self.frontier.load(Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// All of them, who has waited longest first.
    pub(super) fn all(&self) -> Vec<Want> {
        if self.is_empty() { Vec::new() } else { self.lock().iter().map(|(_, want)| *want).collect() }
    }

    /// Ends when a reader has begun to wait for something.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(ReaderId, Want)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_is_far_ahead_is_served_out_of_turn() {
        let wants = Wants::default();
        wants.reached(10);
        wants.wait(1, 10 + NEAR, 1 << 40);
        assert!(wants.is_empty());
        wants.wait(2, 11 + NEAR, 1 << 40);
        wants.changed().await;
        assert_eq!(wants.all(), [Want { at: 11 + NEAR, end: 1 << 40 }]);
        wants.read_to(2, 12 + NEAR);
        assert_eq!(wants.all()[0].at, 12 + NEAR);
        wants.reached(100);
        wants.wait(2, 13 + NEAR, 1 << 40);
        assert!(wants.is_empty(), "the frontier has come close");
    }
}
