//! How fast bytes come in.

use std::collections::VecDeque;
use std::time::Duration;

/// What is looked back upon.
const WINDOW: Duration = Duration::from_millis(1_000);
const SAMPLE: Duration = Duration::from_millis(50);

/// The rate of late.
#[derive(Debug)]
pub(super) struct Meter {
    samples: VecDeque<(Duration, u64)>,
    began: Duration,
}

impl Meter {
    pub(super) fn new(now: Duration, frontier: u64) -> Self {
        Self { samples: VecDeque::from([(now, frontier)]), began: now }
    }

    pub(super) fn arrived(&mut self, now: Duration, frontier: u64) {
        if self.samples.back().is_some_and(|(at, _)| now.saturating_sub(*at) < SAMPLE) && self.samples.len() > 1 {
            if let Some(last) = self.samples.back_mut() {
                last.1 = frontier;
            }
            return;
        }
        self.samples.push_back((now, frontier));
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second.
    pub(super) fn rate(&self, now: Duration) -> f64 {
        let since = now.saturating_sub(WINDOW).max(self.began);
        let before = self.samples.iter().rev().find(|(at, _)| *at <= since).or(self.samples.front());
        let (Some((_, from)), Some((_, to))) = (before, self.samples.back()) else { return 0.0 };
        let took = now.saturating_sub(since).max(SAMPLE);
        to.saturating_sub(*from) as f64 / took.as_secs_f64()
    }
}
