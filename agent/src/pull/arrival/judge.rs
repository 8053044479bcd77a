//! Whether those at work do well, and how many they should be.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Arrival;
use crate::peers::Turn;
use crate::pull::direct::{SILENT, silent};
use crate::pull::gauge::Reading;
use crate::pull::source::Source;
use crate::pull::sources::CRAWL;
use crate::pull::worker::Worker;
use crate::upstream::Upstream;

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
        self.give_way(now);
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

    /// Leaves a connection to who waits for one: of several to the same upstream, the one that is of the least use by
    /// now; the only one, when it has had its turn. What is left of its claim waits in line then.
    fn give_way(&mut self, now: Instant) {
        let may_go = |worker: &Worker| {
            let Source::Upstream(source) = &worker.source else { return false };
            let open = self.workers.iter().filter(|other| other.is_of(source)).count();
            // Where there are no ranges, all would come again.
            let is_over = worker.has_had_its_turn(now) && !self.sources.is_rangeless(source);
            source.is_waited_for() && (open > 1 || is_over)
        };
        let use_of = |worker: &Worker| (worker.is_reading, Reverse(self.claims.left(worker.claim).start));
        let going = self.workers.iter().enumerate().filter(|(_, worker)| may_go(worker));
        if let Some((index, _)) = going.min_by_key(|(_, worker)| use_of(worker)) {
            self.dismiss(index);
        }
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
            if !worker.is_reading && source.is_waited_for() {
                // It waits for one of our own connections. That is no fault of its.
                if worker.silent_for(now) >= SILENT && self.sources.prefer_with_room(source) {
                    let source = source.clone();
                    self.dismiss(index);
                    self.sources.leave(&source);
                } else {
                    index += 1;
                }
            } else if worker.silent_for(now) >= SILENT && self.sources.prefer_faster(source, 0) {
                let source = source.clone();
                self.dismiss_silent(&source, now);
                self.sources.failed(&source, silent(&source));
                index = 0;
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

    /// Dismisses all whose source, the same one, is silent: together they are one failure.
    fn dismiss_silent(&mut self, source: &Arc<Upstream>, now: Instant) {
        let is_silent = |worker: &Worker| worker.is_of(source) && worker.silent_for(now) >= SILENT;
        while let Some(index) = self.workers.iter().position(is_silent) {
            self.dismiss(index);
        }
    }
}
