use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A wait that is shorter says nothing about how long a request took.
const NOTABLE: Duration = Duration::from_millis(100);

/// Requests that wait for something else than the upstream's answer: how long that takes is no fault of the upstream's.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    now: usize,
    /// When the last one that took its time was over.
    ended: Option<Instant>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    waits: &'a Waits,
    began: Instant,
}

impl Waits {
    pub(super) fn begin(&self) -> Waiting<'_> {
        self.lock().now += 1;
        Waiting { waits: self, began: Instant::now() }
    }

    /// Whether somebody waits.
    pub(super) fn are_any(&self) -> bool {
        self.lock().now > 0
    }

    /// Whether somebody has waited since then.
    pub(super) fn were_any(&self, since: Instant) -> bool {
        let seen = self.lock();
        seen.now > 0 || seen.ended.is_some_and(|ended| ended >= since)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut seen = self.waits.lock();
        seen.now -= 1;
        if self.began.elapsed() >= NOTABLE {
            seen.ended = Some(Instant::now());
        }
    }
}
