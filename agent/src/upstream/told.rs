use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::{ErrorKind, UpstreamError};
use super::one::Upstream;

/// What those who read from an upstream tell of it.
impl Upstream {
    /// Another upstream answered a request for the same, and this one's, made at `began`, was given up. If it has said
    /// nothing since, it is thought to be down; one that is held up by something else is no slower for it.
    pub fn lost_race(&self, began: Instant) {
        if !self.is_held_up(began) {
            self.exchange.record.lost_race(began);
        }
    }

    /// A body of its was left for another upstream's: nothing had come for so long.
    #[must_use]
    pub fn fell_silent(&self, silence: Duration) -> UpstreamError {
        let error = UpstreamError::new(Arc::clone(&self.exchange.name), ErrorKind::Stalled(silence));
        self.exchange.record.failed(&error);
        error
    }

    /// A body of its was left for another upstream's: so few bytes came in a second.
    pub fn crawled(&self, rate: u64) {
        self.exchange.record.crawled(rate);
    }

    /// At how many bytes a second a body of its crawled, if one did within the last minute.
    #[must_use]
    pub fn crawls_at(&self) -> Option<u64> {
        self.exchange.record.crawls_at()
    }
}
