//! Who gets bytes, but slowly, tells the owner before it fetches for itself: all who read behind a slow node run out of
//! patience together, and that one of them fetches is enough. What a slow parent says of others lies in the same queue as its
//! bytes, and is old when it comes, while the owner hears from who fetches.

use std::time::Duration;

use crate::cluster::chain::{Ailment, Hop};
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
/// Who gets less of a large blob than this in a second, in bytes, asks for another source every second, and after so many
/// times less and less often. About as much lies on the way at a time, so what a parent says then is older than that.
const LITTLE: u64 = 512 << 10;
const LOOKS_EVERY: Duration = Duration::from_secs(1);
const MOST_LOOKS: u32 = 3;
const MOST_DOUBLED: u32 = 4;

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
    /// When this node looked for another source, and how often it asked for one.
    looked: Duration,
    looks: u32,
}

impl Complaint {
    pub(super) fn fed(&mut self, at: Duration) {
        self.fed = self.fed.max(Some(at));
    }
}

impl Follow {
    /// Is there a reason to complain at this time?
    pub(super) fn is_to_complain(&self, now: Duration) -> bool {
        let is_hungry = self.hungry_at().is_some_and(|at| now >= at);
        is_hungry || (now >= self.patience_until() && self.may_complain(now))
    }

    /// Who gets nothing after a complaint helps himself. Who has had nothing at all complains only where the parent hasn't
    /// either, and one beyond it has: else there would be nobody to go to.
    fn may_complain(&self, now: Duration) -> bool {
        let most_in_vain = if self.delay().is_zero() { 0 } else { MOST_IN_VAIN };
        let is_heard = self.complaint.at != Some(self.frontier) || self.complaint.in_vain < most_in_vain;
        let waits_with_parent = || matches!(&self.source, Source::Peer(reading) if reading.parent_waits());
        (self.frontier > 0 || waits_with_parent())
            && is_heard
            && self.complaint.count < MOST
            && self.somebody_hears(now)
    }

    /// Is there an owner to complain to, and has it answered all that it was asked?
    fn somebody_hears(&self, now: Duration) -> bool {
        self.pending.is_empty() && self.ranks.best(now, None).is_some()
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
        self.patience.renew(now);
        let complaint = &mut self.complaint;
        complaint.in_vain = if complaint.at == Some(self.frontier) { complaint.in_vain + 1 } else { 0 };
        complaint.count += 1;
        complaint.at = Some(self.frontier);
        complaint.complained = now;
        self.ask_for_another(now, parent);
    }

    /// When it is time to see whether little comes.
    pub(super) fn looks_at(&self) -> Option<Duration> {
        let Source::Peer(reading) = &self.source else { return None };
        // Who went to the end of the chain may wait for one that still reads what it gave before, as slow as that one is.
        let since = reading.fed_since.or_else(|| reading.lagging_parent(self.frontier).map(|_| reading.began));
        let since = since.filter(|_| self.size.is_some_and(|size| size >= LARGE))?;
        let Complaint { looked, looks, .. } = self.complaint;
        Some(since.max(looked) + LOOKS_EVERY * (1 << looks.saturating_sub(MOST_LOOKS).min(MOST_DOUBLED)))
    }

    /// Complains if little comes, and not because the parent has less yet: unless it takes long to catch up.
    pub(super) fn look_about(&mut self, now: Duration, parent: NodeId) {
        self.complaint.looked = now;
        let Source::Peer(reading) = &self.source else { return };
        let soon =
            |parent: &Hop| (self.frontier - parent.frontier) as f64 <= parent.rate as f64 * LOOKS_EVERY.as_secs_f64();
        let catches_up = reading.lagging_parent(self.frontier).is_some_and(soon);
        if catches_up || reading.is_held_back(now) || self.rate(now) >= LITTLE {
            self.complaint.looks = 0;
        } else if self.somebody_hears(now) {
            self.complaint.looks += 1;
            self.ask_for_another(now, parent);
        }
    }

    fn ask_for_another(&mut self, now: Duration, parent: NodeId) {
        self.troubles.note(now, parent, Ailment::Slow);
        // Who asks and has nobody to ask fetches for itself.
        if self.ranks.best(now, None).is_none() {
            return;
        }
        self.complaint.number = self.numbers + 1;
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
            Answer::Read { ticket, parents, .. } if parents.first() != Some(&parent) => {
                self.place(ticket);
                // Who serves the parent compares the two.
                let others = parents.into_iter().filter(|node| *node != parent);
                let others = others.map(|node| Candidate { instead_of: Some(parent), ..Candidate::of(node) });
                self.candidates = others.chain([Candidate::of(parent)]).collect();
                self.try_next(now);
            }
            Answer::Read { .. } | Answer::NotOwner(_) | Answer::Alone { .. } => {}
        }
    }
}
