use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Those who were let in and have no answer yet: on a connection that was just opened, or with a request under way whose
/// reply has not begun. A reply that has begun doesn't count, however long it takes.
#[derive(Debug, Clone, Default)]
pub struct Unanswered(TaskTracker);

impl Unanswered {
    /// Waits until there are none, once nobody is let in any more.
    pub async fn none(&self) {
        self.0.close();
        self.0.wait().await;
    }

    /// A connection was opened: a request is expected.
    pub(super) fn expect(&self) -> Expected {
        let opened = Mutex::new(Some(self.0.token()));
        Expected { all: self.clone(), opened, first: CancellationToken::new() }
    }
}

/// What one connection brings.
pub(super) struct Expected {
    all: Unanswered,
    /// Until the first request.
    opened: Mutex<Option<TaskTrackerToken>>,
    first: CancellationToken,
}

impl Expected {
    /// Is cancelled by the first request.
    pub(super) fn first(&self) -> CancellationToken {
        self.first.clone()
    }

    /// A request has come; it counts until this is dropped.
    pub(super) fn begin(&self) -> TaskTrackerToken {
        let asked = self.all.0.token();
        drop(self.opened.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.first.cancel();
        asked
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_was_let_in_counts_until_the_answer() {
        let unanswered = Unanswered::default();
        let (idle, asks) = (unanswered.expect(), unanswered.expect());
        let asked = asks.begin();
        assert!(asks.first().is_cancelled() && !idle.first().is_cancelled());
        assert!(unanswered.none().now_or_never().is_none());
        drop(idle);
        assert!(unanswered.none().now_or_never().is_none(), "a request is under way");
        drop(asked);
        unanswered.none().await;
        drop(asks.begin());
        unanswered.none().await;
    }
}
