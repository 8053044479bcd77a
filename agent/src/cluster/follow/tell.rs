//! What owners are told.

use std::time::Duration;

use crate::cluster::chain::Lease;
use crate::cluster::directory::{Report, State};
use crate::image::NodeId;

use super::{Action, Follow, Source};

/// Of a blob of so many bytes both owners know who reads it: of whom the first one knows alone, the second one, asked in its
/// place, would have fetched again. Of smaller ones that would cost more than it saves.
pub(super) const LARGE: u64 = 8 << 20;

impl Follow {
    pub(super) fn report(&self, now: Duration, lease: Option<Lease>, state: State) -> Report {
        let parent = match &self.source {
            Source::Peer(reading) => Some(reading.opening.node),
            _ => None,
        };
        Report {
            key: self.sought.key.clone(),
            ticket: self.ticket,
            lease,
            credential: self.sought.credential,
            size: self.size,
            frontier: self.frontier,
            rate: self.rate(now),
            lag: self.readers_lag,
            parent,
            zone: self.sought.zone.clone(),
            state,
        }
    }

    pub(super) fn tell(&mut self, now: Duration, owner: NodeId, state: State) {
        let report = self.report(now, None, state);
        self.actions.push(Action::Report { owner, report: Box::new(report) });
    }

    pub(super) fn report_lease(&mut self, now: Duration) {
        let Source::Lease(range) = &mut self.source else { return };
        range.reported = now;
        if range.has_ended {
            return;
        }
        let (owner, lease) = (range.owner, range.lease);
        let report = self.report(now, Some(lease), State::Fetching);
        self.actions.push(Action::Report { owner, report: Box::new(report) });
    }

    /// The owner that gave the lease doesn't answer: the other one is told, and takes it over. Where neither answers, it is
    /// told when the next report is due: who failed a moment ago isn't called, so a report to it at once would fail at once,
    /// and so on.
    pub(super) fn report_elsewhere(&mut self, now: Duration) {
        let Source::Lease(range) = &mut self.source else { return };
        let owner = range.owner;
        self.ranks.failed(now, owner);
        let Some(other) = self.ranks.best(now, Some(owner)) else { return };
        range.owner = other;
        self.report_lease(now);
    }

    /// Tells the owner whom this node reads from.
    pub(super) fn tell_reading(&mut self, now: Duration) {
        self.told_reading = now;
        let Some(owner) = self.ranks.best(now, None) else { return };
        self.tell(now, owner, State::Reading);
        if self.size.is_some_and(|size| size >= LARGE) {
            self.tell_other(now, owner, State::Reading);
            self.told_both = true;
        }
    }

    /// Tells the owner that isn't this one, too.
    fn tell_other(&mut self, now: Duration, owner: NodeId, state: State) {
        if let Some(other) = self.ranks.owners().iter().find(|other| *other != owner) {
            self.tell(now, other, state);
        }
    }

    /// The end: nothing is waited for any more.
    pub(super) fn end(&mut self, now: Duration, state: State) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        self.pending.clear();
        let of_lease = match &self.source {
            Source::Lease(range) => Some(range.owner),
            _ => None,
        };
        // Who never came to a place has nothing to take back.
        let says_something = state != State::Gone || self.ticket.is_some() || self.asked.is_some();
        if let Some(owner) = of_lease.or_else(|| self.ranks.best(now, None)).filter(|_| says_something) {
            self.tell(now, owner, state.clone());
            if self.told_both {
                self.tell_other(now, owner, state);
            }
        }
        self.source = Source::Nothing;
    }
}
