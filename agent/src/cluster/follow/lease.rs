//! What is fetched for the chain, under a lease.

use std::time::Duration;

use crate::cluster::chain::Lease;
use crate::cluster::directory::{Answer, Released, State, Verdict};
use crate::image::NodeId;

use super::{Action, CHUNK, Follow, PIECE, Source};

/// Upstream, when it failed, isn't tried again for so long while somebody else may help.
const UPSTREAM_RESTS: Duration = Duration::from_millis(500);
/// A reader that lags by more, in bytes, would leave upstream idle while it catches up: until it has, who fetched goes on.
const LAG: u64 = 1 << 20;
/// What comes within this time is as good as here: to leave it would cost more than to wait for it.
const SOON: Duration = Duration::from_millis(500);

/// A range under a lease.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) lease: Lease,
    pub(super) owner: NodeId,
    pub(super) from: u64,
    pub(super) upto: u64,
    /// Where it ends as the owner gave it: what is fetched beyond is this node's own decision.
    given: u64,
    pub(super) told_half: bool,
    pub(super) reported: Duration,
    /// At the end, since when there is no verdict.
    pub(super) waits: Option<Duration>,
    /// It has ended, and readers haven't caught up.
    pub(super) has_ended: bool,
}

impl Range {
    /// From `frontier` on. It may be at its end already: while the answer was under way, this node fetched for itself.
    pub(super) fn new(now: Duration, owner: NodeId, lease: Lease, frontier: u64, upto: u64) -> Self {
        let waits = (frontier >= upto).then_some(now);
        Self {
            lease,
            owner,
            from: frontier,
            upto,
            given: upto,
            told_half: false,
            reported: now,
            waits,
            has_ended: false,
        }
    }
}

impl Follow {
    /// An owner has judged a report.
    pub fn reported(&mut self, now: Duration, lease: Lease, verdict: Verdict) {
        let has_all = self.has_all();
        let frontier = self.frontier;
        let Source::Lease(range) = &mut self.source else { return };
        if range.lease != lease || range.has_ended {
            return;
        }
        match verdict {
            Verdict::Noted => {}
            Verdict::GoOn { upto } => {
                range.given = range.given.max(upto);
                if upto > range.upto {
                    range.from = frontier;
                    range.upto = upto;
                    range.told_half = false;
                    range.waits = (frontier >= upto).then_some(now);
                }
            }
            Verdict::Ended if has_all => {}
            Verdict::Ended => {
                range.has_ended = true;
                range.waits = None;
                self.yield_or_go_on(now);
            }
        }
    }

    /// A report didn't reach its owner.
    pub fn unreported(&mut self, now: Duration, owner: NodeId, lease: Lease) {
        let Source::Lease(range) = &self.source else { return };
        if range.lease == lease && range.owner == owner {
            self.report_elsewhere(now);
        }
    }

    /// A range has ended: another is to fetch, once it has what there is. Until then this node goes on without a pause, by
    /// pieces that come soon, and ends with one of them: what is on its way when another begins, that one fetches too.
    pub(super) fn yield_or_go_on(&mut self, now: Duration) {
        let soon = (self.meter.rate(now) * SOON.as_secs_f64()) as u64;
        let Source::Lease(range) = &mut self.source else { return };
        let left = self.size.unwrap_or(u64::MAX).min(range.upto).saturating_sub(self.frontier);
        if self.readers_lag > LAG {
            let piece = soon.clamp(CHUNK, PIECE);
            if left <= piece / 2 {
                range.upto = (range.upto.max(self.frontier).saturating_add(piece)) / CHUNK * CHUNK;
            }
            return;
        }
        let is_on_its_way = left > 0 && left <= soon && self.frontier >= range.given;
        if !is_on_its_way {
            self.actions.push(Action::Yields);
            self.to_the_tail = true;
            self.seek_anew(now);
        }
    }

    /// Upstream is no use.
    pub fn upstream_failed(&mut self, now: Duration, why: Released) {
        self.upstream_rests_until = now + UPSTREAM_RESTS;
        self.upstream_has_failed = true;
        match &self.source {
            Source::Lease(range) => {
                let (owner, lease) = (range.owner, Some(range.lease));
                let report = self.report(now, lease, State::Released(why));
                self.actions.push(Action::Report { owner, report: Box::new(report) });
                self.actions.push(Action::Yields);
                self.to_the_tail = true;
                self.seek_anew(now);
            }
            Source::Own { .. } => self.seek_anew(now),
            Source::Nothing | Source::Peer(_) => {}
        }
    }

    /// Was this node told to fetch by another owner than this one?
    pub(super) fn has_lease_of_other(&self, owner: NodeId) -> bool {
        matches!(&self.source, Source::Lease(range) if range.owner != owner)
    }

    /// The first owner lives after all. What it says counts, since all others go by it: under a lease of the second one,
    /// this node would fetch a copy for itself. It goes on without a pause until the first one has judged how far it is;
    /// to the second one it is one who reads, so that those who ask there are still sent to it.
    pub(super) fn return_to_first(&mut self, now: Duration, first: NodeId, answer: &Answer) {
        let Source::Lease(range) = &mut self.source else { return };
        let second = range.owner;
        match *answer {
            Answer::Fetch { ticket, lease, upto } => {
                *range = Range::new(now, first, lease, self.frontier, upto);
                self.place(ticket);
            }
            Answer::Read { .. } => range.owner = first,
            Answer::NotOwner(_) | Answer::Alone { .. } => return,
        }
        self.told_both = true;
        self.tell(now, second, State::Reading);
        self.report_lease(now);
    }
}
