//! Whether those at work do well, and how many they should be.

use std::time::{Duration, Instant};

use super::Arrival;
use crate::peers::Turn;
use crate::pull::direct::{SILENT, silent};
use crate::pull::gauge::Reading;
use crate::pull::source::Source;
use crate::pull::sources::CRAWL;

/// After a gap between two ticks longer than this, it was we who didn't read.
const STUCK: Duration = Duration::from_secs(1);

impl Arrival<'_> {
    /// Looks after the workers. `true` when there may be something else to do.
    pub(super) fn judge(&mut self, now: Instant) -> bool {
        let blocked = now.saturating_duration_since(self.last_tick) > STUCK;
        self.last_tick = now;
        self.tell_frontier(true);
        self.verify_as_needed();
        if blocked {
            self.last_gain = now;
            self.workers.iter_mut().for_each(|worker| worker.watch_anew(now));
            return true;
        }
        let before = self.workers.len();
        if !self.suspects.must_be_alone() {
            self.leave_the_slow(now);
        }
        let left = self.arriving.ingest.size().saturating_sub(self.frontier);
        let is_upstreams = matches!(self.turn_is, Turn::Upstream { .. });
        let for_others = self.is_leased();
        let source = if is_upstreams { self.sources.next() } else { None };
        let limit = source.map_or(1, |source| self.limit(&source));
        let in_demand = !std::mem::take(&mut self.was_ahead);
        let workers = self.workers.len();
        let reading = Reading { now, bytes: self.gained, left, workers, in_demand, limit, for_others };
        let resized = self.gauge.measure(reading);
        // What somebody waits for may have seemed to come soon, and doesn't.
        resized || workers < before || workers == 0 || !self.transfer.wants.is_empty() || self.part_ends_soon()
    }

    /// Dismisses workers whose source is silent or crawls, where another source is likely to do better.
    fn leave_the_slow(&mut self, now: Instant) {
        let mut index = 0;
        while index < self.workers.len() {
            let worker = &mut self.workers[index];
            let rate = worker.rate(now);
            // Of peers, the cluster knows better what may be expected.
            let Source::Upstream(source) = &worker.source else {
                index += 1;
                continue;
            };
            if worker.silent_for(now) >= SILENT && self.sources.prefer_faster(source, 0) {
                let source = source.clone();
                self.dismiss(index);
                self.sources.failed(&source, silent(&source));
            } else if let Some(rate) = rate.filter(|&rate| rate < CRAWL)
                && self.sources.prefer_faster(source, rate)
            {
                let source = source.clone();
                self.dismiss(index);
                self.sources.crawls(&source, rate);
            } else {
                index += 1;
            }
        }
    }
}
