use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Bytes;

/// The longest that one piece waits for its turn. Sources are judged by their silence, which must not be ours: so at rates
/// below a piece a second, a piece comes each second.
const LONGEST: Duration = Duration::from_secs(1);

/// Holds what is fetched in the background to a rate, all of it together.
///
/// A transfer is held to it for as long as nobody else waits for its bytes.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    /// Until when what came so far is paid for.
    due: Mutex<Instant>,
}

impl Pace {
    /// Bytes a second. `0`: a piece a second.
    #[must_use]
    pub fn new(rate: Bytes) -> Self {
        Self { bytes_per_second: rate.0.max(1), due: Mutex::new(Instant::now()) }
    }

    /// Waits until so many more bytes may come.
    pub async fn take(&self, bytes: u64) {
        tokio::time::sleep(self.pay(bytes, Instant::now())).await;
    }

    /// Pays for bytes that came; how long the next ones are to wait.
    pub(super) fn pay(&self, bytes: u64, now: Instant) -> Duration {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        // What wasn't used of the rate so far is lost: there are no bursts.
        *due = ((*due).max(now) + cost.min(LONGEST)).min(now + LONGEST);
        *due - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_together_come_at_the_rate() {
        let pace = Pace::new(Bytes(1000));
        let begun = Instant::now();
        let mut now = begun;
        let mut bytes = 0;
        while bytes < 100_000 {
            bytes += 250;
            now += pace.pay(250, now);
        }
        let seconds = (now - begun).as_secs_f64();
        assert!((99.0..101.0).contains(&seconds), "{seconds}");
        // A rest earns nothing, and nobody waits longer than the longest.
        now += Duration::from_secs(60);
        assert_eq!(pace.pay(250, now), Duration::from_millis(250));
        assert_eq!(pace.pay(1 << 40, now), LONGEST);
    }
}
