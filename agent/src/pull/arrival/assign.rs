//! Who fetches what.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Arrival, Arrived, WANTED};
use crate::pull::claims::ClaimId;
use crate::pull::worker::Worker;
use crate::upstream::{Part, Upstream};

/// What one of several connections fetches at a time, in bytes: each costs a request, and what lies between the frontier
/// and the furthest of them is bytes that no reader can have yet.
const PIECE: u64 = 8 << 20;
/// What a worker reaches within this time is not worth another request.
const SOON: Duration = Duration::from_millis(50);

impl Arrival<'_> {
    /// Gives work to as many workers as there should be: first what readers far ahead wait for, then what comes next.
    pub(super) fn put_to_work(&mut self) -> Result<(), Arrived> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        if self.retry_at.take().is_some() {
            self.sources.begin_round();
        }
        loop {
            let Some(source) = self.sources.next() else { return self.out_of_sources() };
            if !self.suspects.admits(&source) {
                return if self.workers.is_empty() { Err(Arrived::NotFromOne) } else { Ok(()) };
            }
            let rangeless = self.sources.is_rangeless(&source);
            if self.workers.len() >= self.limit(&source) {
                if !rangeless {
                    self.make_room();
                }
                return Ok(());
            }
            let wanted = if rangeless { None } else { self.claim_wanted() };
            let Some(claim) = wanted.or_else(|| self.claim_next(rangeless)) else { return Ok(()) };
            let left = self.claims.left(claim);
            let part = if rangeless {
                Part::WHOLE
            } else {
                Part { from: left.start, to: (left.end < self.arriving.ingest.size()).then_some(left.end) }
            };
            self.workers.push(Worker::ask(source, self.transfer.wanted.clone(), part, claim));
        }
    }

    /// The most connections to an upstream.
    pub(super) fn limit(&self, source: &Arc<Upstream>) -> usize {
        if self.sources.is_rangeless(source) || self.crowded_until.is_some_and(|until| Instant::now() < until) {
            return 1;
        }
        source.ranges_at_once()
    }

    fn claim_wanted(&mut self) -> Option<ClaimId> {
        if self.transfer.wants.is_empty() {
            return None;
        }
        let near = self.reached_in(SOON);
        let ingest = &self.arriving.ingest;
        let claims = &mut self.claims;
        let mut wants = self.transfer.wants.all().into_iter();
        wants.find_map(|want| claims.take_wanted(|at| ingest.gap(at), want.at..want.end, WANTED, near))
    }

    /// How far one of the workers comes in a time, in bytes, by what all have brought so far.
    fn reached_in(&self, time: Duration) -> u64 {
        let rate = self.gained as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        (rate * time.as_secs_f64()) as u64 / self.workers.len().max(1) as u64
    }

    fn claim_next(&mut self, rangeless: bool) -> Option<ClaimId> {
        let width = self.gauge.width();
        if self.workers.len() >= width && !self.workers.is_empty() && self.is_served(self.frontier) {
            return None;
        }
        if width > 1 {
            // Who came first has all of it.
            self.claims.cap(PIECE);
        }
        let piecewise = !rangeless && (width > 1 || !self.transfer.wants.is_empty());
        let most = if piecewise { PIECE } else { u64::MAX };
        self.claims.take(|at| self.arriving.ingest.gap(at), self.frontier, most)
    }

    fn is_served(&self, at: u64) -> bool {
        self.workers.iter().any(|worker| self.claims.left(worker.claim).contains(&at))
    }

    /// Every connection that there may be is at work. A reader far ahead has to wait for one of them, and shall not have
    /// to wait for the end of the blob.
    fn make_room(&mut self) {
        if !self.transfer.wants.is_empty() {
            self.claims.cap(WANTED);
        }
    }

    /// This round is over, and was in vain.
    fn out_of_sources(&mut self) -> Result<(), Arrived> {
        if !self.workers.is_empty() {
            return Ok(());
        }
        if self.arriving.ingest.gap(0).is_none() {
            return Ok(());
        }
        if self.gained == 0 && self.arriving.ingest.present() == 0 {
            // Nobody has been answered yet, and who asks has other hosts to ask.
            return Err(Arrived::Cut);
        }
        let retry_at = Instant::now() + self.sources.pause();
        if retry_at > self.last_gain + self.pull.options.resume_within {
            return Err(Arrived::Cut);
        }
        self.retry_at = Some(retry_at);
        Ok(())
    }
}
