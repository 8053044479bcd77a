//! Who gets bytes, but slowly, tells the owner before it fetches for itself: all who read behind a slow node run out of
//! patience together, and that one of them fetches is enough.

use std::time::Duration;

use crate::cluster::chain::Ailment;
use crate::cluster::directory::Answer;
use crate::image::NodeId;

use super::lease::Range;
use super::seek::Candidate;
use super::tell::LARGE;
use super::{Follow, Source};

/// How often a reading complains.
const MOST: u32 = 16;
/// How often in a row for the same byte where answers are late: this node's own link is full then, and what it would fetch
/// for itself would wait behind the rest.
const MOST_IN_VAIN: u32 = 3;
/// Who has had bytes of a small blob and gets none for so long doesn't wait for its patience to end, a few times. (Those of
/// a large one find by rates who is slow.)
const HUNGRY: Duration = Duration::from_secs(1);
const HUNGRY_EVERY: Duration = Duration::from_secs(2);
const MOST_HUNGRY: u32 = 4;

/// What this node has complained of.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    count: u32,
    in_vain: u32,
    /// How far this node was at the last one, and when.
    at: Option<u64>,
    complained: Duration,
    /// The ask that says it.
    number: u64,
    /// When bytes last came from a peer.
    fed: Option<Duration>,
}

impl Complaint {
    pub(super) const fn fed(&mut self, now: Duration) {
        self.fed = Some(now);
    }
}

impl Follow {
    /// Is there a reason to complain at this time?
    pub(super) fn is_to_complain(&self, now: Duration) -> bool {
        let is_hungry = self.hungry_at().is_some_and(|at| now >= at);
        is_hungry || (now >= self.patience_until() && self.may_complain())
    }

    /// Who has had nothing at all, or gets nothing after a complaint, helps himself.
    fn may_complain(&self) -> bool {
        let most_in_vain = if self.delay().is_zero() { 0 } else { MOST_IN_VAIN };
        let is_heard = self.complaint.at != Some(self.frontier) || self.complaint.in_vain < most_in_vain;
        self.frontier > 0 && is_heard && self.complaint.count < MOST && self.pending.is_empty()
    }

    /// When hunger makes this node complain, if nothing comes.
    pub(super) fn hungry_at(&self) -> Option<Duration> {
        let Complaint { count, at, complained, fed, .. } = self.complaint;
        let is_small = self.size.is_some_and(|size| size < LARGE);
        let may = is_small && count < MOST_HUNGRY && at != Some(self.frontier) && self.pending.is_empty();
        let hungry = fed.filter(|_| may)? + HUNGRY + 2 * self.delay();
        Some(hungry.max(complained + HUNGRY_EVERY))
    }

    /// Asks the owner for another source, and reads on meanwhile.
    pub(super) fn complain(&mut self, now: Duration, parent: NodeId) {
        self.troubles.note(now, parent, Ailment::Slow);
        self.patience.renew(now);
        let complaint = &mut self.complaint;
        complaint.in_vain = if complaint.at == Some(self.frontier) { complaint.in_vain + 1 } else { 0 };
        complaint.count += 1;
        complaint.at = Some(self.frontier);
        complaint.complained = now;
        complaint.number = self.numbers + 1;
        self.ask(now);
    }

    /// Does an answer under this number come to a complaint, and is it still of use?
    pub(super) const fn is_about_complaint(&self, number: u64) -> bool {
        self.complaint.number == number && matches!(self.source, Source::Peer(_))
    }

    pub(super) fn complaint_answered(&mut self, now: Duration, owner: NodeId, answer: Answer) {
        let Source::Peer(reading) = &self.source else { return };
        let parent = reading.opening.node;
        match answer {
            Answer::Fetch { ticket, lease, upto } => {
                self.place(ticket);
                self.source = Source::Lease(Range::new(now, owner, lease, self.frontier, upto));
            }
            Answer::Read { ticket, parents, .. } if !parents.contains(&parent) => {
                self.place(ticket);
                self.candidates = parents.into_iter().map(Candidate::of).collect();
                self.try_next(now);
            }
            Answer::Read { .. } => self.compare_with_parent(now),
            Answer::NotOwner(_) | Answer::Alone { .. } => {}
        }
    }

    /// The one beyond the parent finds out which of the two is slow.
    fn compare_with_parent(&mut self, now: Duration) {
        let Source::Peer(reading) = &self.source else { return };
        let parent = reading.opening.node;
        let Some(beyond) = reading.path.get(1).map(|hop| hop.node) else { return };
        self.candidates.clear();
        self.candidates.push_back(Candidate { instead_of: Some(parent), ..Candidate::of(beyond) });
        self.candidates.push_back(Candidate::of(parent));
        self.try_next(now);
    }
}
