//! How soon to write again what somebody else changed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Between a change and our answer: people and tools write a file in several steps.
pub(super) const DEBOUNCE: Duration = Duration::from_millis(200);
/// The longest that we wait in a fight.
const LONGEST: Duration = Duration::from_secs(60);
/// A folder that nobody changed for so long, beyond the wait, is at peace.
const QUIET: Duration = Duration::from_secs(60);
/// So many times in a row are a fight.
const FIGHT: u32 = 5;

/// What was written again, by folder.
#[derive(Debug, Default)]
pub(super) struct Pace {
    folders: HashMap<String, Strikes>,
}

#[derive(Debug)]
struct Strikes {
    count: u32,
    last: Instant,
}

impl Pace {
    /// A folder was written because somebody had changed it. True once, when that has become a fight.
    pub(super) fn rewrote(&mut self, folder: &str, now: Instant) -> bool {
        self.folders.retain(|_, strikes| now < strikes.last + strikes.wait() + QUIET);
        let strikes = self.folders.entry(folder.to_owned()).or_insert(Strikes { count: 0, last: now });
        strikes.count = strikes.count.saturating_add(1);
        strikes.last = now;
        strikes.count == FIGHT
    }

    /// How long to wait before the next writing.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let due = self.folders.values().map(|strikes| (strikes.last + strikes.wait()).saturating_duration_since(now));
        due.max().unwrap_or_default().max(DEBOUNCE)
    }
}

impl Strikes {
    fn wait(&self) -> Duration {
        // The first changes are answered at once.
        DEBOUNCE.saturating_mul(2_u32.saturating_pow(self.count.saturating_sub(2))).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_is_told_once_and_slows_us_down_until_there_is_peace() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        assert_eq!(pace.wait(now), DEBOUNCE);
        let mut told = 0;
        let mut waits = vec![];
        for _ in 0..20 {
            told += u32::from(pace.rewrote("docker.io", now));
            waits.push(pace.wait(now));
            now += pace.wait(now);
        }
        assert_eq!(told, 1);
        assert!(waits.is_sorted() && waits[1] == DEBOUNCE && waits[19] == LONGEST, "{waits:?}");

        now += LONGEST + QUIET;
        assert!(!pace.rewrote("ghcr.io", now));
        assert_eq!(pace.wait(now), DEBOUNCE);
        assert_eq!(pace.folders.len(), 1);
    }
}
