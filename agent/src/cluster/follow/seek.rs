//! Where bytes may come from next: those who were named, those on the path, the owner, and at last upstream.

use std::time::Duration;

use crate::cluster::chain::{Ailment, Trouble};
use crate::cluster::directory::Ask;
use crate::image::NodeId;

use super::reading::Reading;
use super::{
    ANSWERS_ARE_LATE, ASK_AGAIN_IN_VAIN_AT_MOST, ASK_FAILS, Action, Follow, Opening, PIECE, Source, piece_after,
};

pub(super) const MAX_REDIRECTS: u32 = 2;
const MAX_REFERRALS: usize = 4;
/// The most candidates at a time.
const MAX_CANDIDATES: usize = 24;
/// An ask that led nowhere is repeated after so long, then after twice as long, and so on.
const REPEATS: Duration = Duration::from_millis(20);

/// An ask that isn't answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) number: u64,
    pub(super) owner: NodeId,
    pub(super) redirects: u32,
    /// Who sent this node to that owner, since it isn't one in its own view.
    via: Option<NodeId>,
    at: Duration,
    /// It is late, and the other owner was asked.
    is_late: bool,
}

/// Somebody to read from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) node: NodeId,
    pub(super) instead_of: Option<NodeId>,
    pub(super) insists: bool,
}

impl Candidate {
    pub(super) const fn of(node: NodeId) -> Self {
        Self { node, instead_of: None, insists: false }
    }
}

impl Follow {
    /// Asks the best owner, unless one is being asked. Without one, this node is alone.
    pub(super) fn ask(&mut self, now: Duration) {
        if self.pending.iter().any(|pending| !pending.is_late) {
            return;
        }
        match self.ranks.best(now, None) {
            Some(owner) => self.ask_owner(now, owner),
            None => self.go_alone(now),
        }
    }

    fn ask_owner(&mut self, now: Duration, owner: NodeId) {
        self.ask_by_way_of(now, owner, None, 0);
    }

    /// Whom `pending` was sent to says that it is no owner, and who is.
    pub(super) fn redirected(&mut self, now: Duration, pending: &Pending, owner: NodeId) {
        let via = Some(pending.via.unwrap_or(pending.owner));
        self.ask_by_way_of(now, owner, via, pending.redirects + 1);
    }

    fn ask_by_way_of(&mut self, now: Duration, owner: NodeId, via: Option<NodeId>, redirects: u32) {
        self.numbers += 1;
        let number = self.numbers;
        let ask = Ask {
            key: self.sought.key.clone(),
            credential: self.sought.credential,
            zone: self.sought.zone.clone(),
            size: self.size,
            frontier: self.frontier,
            ticket: self.ticket,
            to_the_tail: self.to_the_tail,
            slow: self.slow,
            troubles: self.troubles_now(now),
            // The second one, or one that stands in for whom it led to.
            owner_failed: via.is_none() && (redirects > 0 || self.ranks.is_second(owner)),
        };
        self.asked = Some(now);
        self.pending.push(Pending { number, owner, redirects, via, at: now, is_late: false });
        self.actions.push(Action::Ask { number, owner, ask: Box::new(ask) });
    }

    /// An owner is no use: the other one is asked. First the one whose word led to it, if that was one step: who believes in
    /// an owner that has gone is the next one for itself, and learns of its end later than this node. If it isn't, it is no
    /// use either: it would say the same again at once.
    pub(super) fn owner_failed(&mut self, now: Duration, pending: &Pending) {
        self.ranks.failed(now, pending.owner);
        if let Some(via) = self.stands_in(now, pending.via, pending.redirects) {
            if !self.is_over && !self.is_served(now) {
                self.ask_by_way_of(now, via, None, MAX_REDIRECTS);
            }
            return;
        }
        if let Some(via) = pending.via {
            self.ranks.failed(now, via);
        }
        if !self.is_over && !self.is_served(now) {
            self.ask(now);
        }
    }

    /// Who is asked in the place of an owner that it led to.
    fn stands_in(&self, now: Duration, via: Option<NodeId>, redirects: u32) -> Option<NodeId> {
        let via = via.filter(|via| redirects == 1 && !self.ranks.is_left_alone(now, *via))?;
        self.pending.iter().all(|pending| pending.owner != via).then_some(via)
    }

    /// Looks for asks that are late.
    pub(super) fn look_at_asks(&mut self, now: Duration) {
        let given_up = self.pending.iter().position(|pending| now.saturating_sub(pending.at) >= ASK_FAILS);
        if let Some(at) = given_up {
            let pending = self.pending.swap_remove(at);
            self.owner_failed(now, &pending);
        }
        let after = self.late;
        let is_late = |pending: &&mut Pending| !pending.is_late && now.saturating_sub(pending.at) >= after;
        let Some(late) = self.pending.iter_mut().find(is_late) else { return };
        late.is_late = true;
        let (owner, via, redirects) = (late.owner, late.via, late.redirects);
        if let Some(via) = self.stands_in(now, via, redirects).filter(|_| !self.is_served(now)) {
            self.ranks.failed(now, owner);
            self.ask_by_way_of(now, via, None, MAX_REDIRECTS);
            return;
        }
        let is_asked = |node: NodeId, pending: &[Pending]| pending.iter().any(|pending| pending.owner == node);
        if let Some(via) = via {
            self.ranks.failed(now, via);
        }
        let other = self.ranks.best(now, Some(owner)).filter(|other| !is_asked(*other, &self.pending));
        // From its silence for now: its answer is taken if it comes before the other's.
        if let Some(other) = other.filter(|_| !self.is_served(now)) {
            self.ranks.failed(now, owner);
            self.ask_owner(now, other);
        }
    }

    pub(super) fn asks_until(&self) -> Option<Duration> {
        let until = |pending: &Pending| pending.at + if pending.is_late { ASK_FAILS } else { self.late };
        self.pending.iter().map(until).min()
    }

    /// Who is no use at present, for the owner to know.
    fn troubles_now(&self, now: Duration) -> Vec<Trouble> {
        let mut troubles = self.troubles.list(now);
        let passed_over = self.passed_over.iter().filter(|node| self.is_passed_over(**node));
        troubles.extend(passed_over.map(|node| Trouble { node: *node, why: Ailment::Full }));
        troubles
    }

    pub(super) fn is_passed_over(&self, node: NodeId) -> bool {
        !self.upstream_has_failed && self.passed_over.contains(&node)
    }

    /// Is there a reason not to read from it now?
    pub(super) fn speaks_against(&self, now: Duration, node: NodeId) -> bool {
        self.is_passed_over(node) || self.troubles.speaks_against(now, node)
    }

    /// Opens a stream to the next candidate that nothing speaks against. False: there is none.
    pub(super) fn try_next(&mut self, now: Duration) -> bool {
        self.candidates.truncate(MAX_CANDIDATES);
        while let Some(candidate) = self.candidates.pop_front() {
            let is_no_use = match candidate.insists {
                true => self.is_passed_over(candidate.node),
                false => self.speaks_against(now, candidate.node),
            };
            if candidate.node == self.me || is_no_use {
                continue;
            }
            self.numbers += 1;
            let opening = Opening {
                number: self.numbers,
                node: candidate.node,
                ticket: self.ticket,
                instead_of: candidate.instead_of,
                insists: candidate.insists,
            };
            let mut reading = Reading::new(now, opening);
            match &self.source {
                Source::Own { .. } => {
                    self.left_own_at = Some(self.frontier);
                    self.patience.try_another(now);
                }
                Source::Lease(_) => self.patience.begin(now),
                Source::Peer(before) => reading.best = before.best,
                Source::Nothing => {}
            }
            self.source = Source::Peer(Box::new(reading));
            return true;
        }
        false
    }

    /// The parent is no use: on to who was named, or those beyond it, or the owner.
    pub(super) fn leave_parent(&mut self, now: Duration, why: Option<Ailment>) {
        let Source::Peer(reading) = &self.source else { return };
        if let Some(why) = why {
            self.troubles.note(now, reading.opening.node, why);
        }
        // Beyond it, each in the place of the one before, which its sender may not have missed yet. From a parent that
        // lives the next one is enough: further up, room would have to be made for this node.
        let far = if why == Some(Ailment::Silent) { usize::MAX } else { 1 };
        let mut before = reading.opening.node;
        for hop in reading.path.iter().skip(1).take(far) {
            // Who stands above this node can't be read from, whatever the path says.
            if hop.ticket.is_none_or(|its| self.ticket.is_some_and(|mine| its < mine)) {
                self.candidates.push_back(Candidate { instead_of: Some(before), ..Candidate::of(hop.node) });
            }
            before = hop.node;
        }
        if !self.try_next(now) {
            self.seek_anew(now);
        }
    }

    /// The parent names others, since it is full, or since this node is to read from them from now on.
    pub(super) fn sent_on(&mut self, now: Duration, others: &[NodeId]) {
        let Source::Peer(reading) = &self.source else { return };
        let (parent, was_open, instead_of) = (reading.opening.node, reading.is_open, reading.opening.instead_of);
        if !was_open {
            self.troubles.note(now, parent, Ailment::Full);
        }
        if self.tried_for_room == Some(parent) && instead_of.is_some_and(|before| others.contains(&before)) {
            // Held against this node, the one before takes as much: what comes is all that the sender gives, and to try
            // that again would put a healthy node out of its place.
            self.room_is_refuted = true;
        }
        for other in others.iter().copied().filter(|other| *other != self.me).take(MAX_REFERRALS) {
            self.troubles.forgive(other, Ailment::Full);
            if self.troubles.is_silent(now, other) && instead_of != Some(other) {
                // Whom it would send this node to has fallen silent, which it may not have missed yet.
                self.troubles.forgive(parent, Ailment::Full);
                self.candidates.push_front(Candidate { instead_of: Some(other), ..Candidate::of(parent) });
            } else {
                self.candidates.push_front(Candidate::of(other));
            }
        }
        if !self.try_next(now) {
            self.seek_anew(now);
        }
    }

    /// Nothing is left of what was known: the owner is asked.
    pub(super) fn seek_anew(&mut self, now: Duration) {
        if !matches!(self.source, Source::Nothing | Source::Peer(_)) {
            self.patience.begin(now);
        }
        self.candidates.clear();
        self.source = Source::Nothing;
        self.find_nothing(now);
    }

    /// Asks, at once or a little later.
    pub(super) fn find_nothing(&mut self, now: Duration) {
        if !matches!(self.source, Source::Nothing) {
            return;
        }
        if self.fruitless > 0 && now < self.repeat_at() {
            return;
        }
        self.fruitless = self.fruitless.saturating_add(1);
        self.ask(now);
    }

    fn repeat_at(&self) -> Duration {
        let pause = REPEATS * (1 << self.fruitless.min(6));
        self.asked.map_or(Duration::ZERO, |asked| asked + pause)
    }

    /// Nothing brings bytes: is it time to ask again, or to fetch a piece?
    pub(super) fn look_for_source(&mut self, now: Duration) {
        let answers_are_late = self.asked.is_none_or(|asked| now.saturating_sub(asked) >= self.late * ANSWERS_ARE_LATE);
        let is_out_of_patience = now >= self.patience_until();
        if (is_out_of_patience || (answers_are_late && !self.pending.is_empty())) && now >= self.upstream_rests_until {
            self.go_alone(now);
        } else if self.pending.is_empty() && now >= self.repeat_at() {
            self.fruitless = self.fruitless.saturating_add(1);
            if self.fruitless > 2 {
                self.troubles.forgive_full();
            }
            self.ask(now);
        }
    }

    pub(super) fn nothing_until(&self) -> Duration {
        let patience = self.patience_until();
        let (alone, ask) = match self.asked.filter(|_| !self.pending.is_empty()) {
            Some(asked) => (patience.min(asked + self.late * ANSWERS_ARE_LATE), Duration::MAX),
            None => (patience, self.repeat_at()),
        };
        alone.max(self.upstream_rests_until).min(ask)
    }

    /// Fetches a piece for itself, and asks again meanwhile.
    pub(super) fn go_alone(&mut self, now: Duration) {
        if matches!(self.source, Source::Own { .. }) {
            return;
        }
        self.candidates.clear();
        self.fruitless = 0;
        if self.left_own_at.take() == Some(self.frontier) {
            self.ask_again = (self.ask_again * 2).min(ASK_AGAIN_IN_VAIN_AT_MOST);
        }
        let has_owner = self.ranks.owners().first.is_some();
        let upto = if has_owner { piece_after(self.frontier) } else { u64::MAX };
        let ask_at = has_owner.then_some(now + self.ask_again);
        self.source = Source::Own { upto, span: PIECE, ask_at };
    }
}
