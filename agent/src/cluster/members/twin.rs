//! Twins: somebody else claims to be this node.
//!
//! A node keeps its number on its disk. Who clones the disk of a machine makes two of one node; to SWIM each would be
//! the other's next life, and they would take each other's place for ever. So: the life that began later stays. The
//! other one yields: it is no member, and asks now and then whether the twin is still there. A life that is only told
//! of is asked first whether it is alive, since it may be this node's own, from a time when its clock was ahead, or
//! from another address.

use std::time::Duration;

use super::agenda::Task;
use super::identity::Identity;
use super::packet::Packet;
use super::{BETWEEN_RENEWALS, Effect, Members, SETTLE_AFTER};

/// Between questions to a twin that may not exist.
const CONTEST: Duration = Duration::from_secs(1);
/// Between questions to one that does.
const CHECK: Duration = Duration::from_secs(30);
/// So many questions without an answer, and it is gone.
const UNANSWERED_MAX: u32 = 3;
const BETWEEN_REPORTS: Duration = Duration::from_secs(600);

/// What this node is in the cluster.
#[derive(Debug)]
pub(super) enum Standing {
    /// A member, or on its way to be one.
    Member,
    /// One, while a later life of this node is looked for.
    Contested { other: Identity, unanswered: u32 },
    /// None: a later life of this node is one.
    Yielded { other: Identity, unanswered: u32 },
    /// None any more.
    Left,
}

impl Standing {
    /// Does it speak with others?
    pub(super) const fn takes_part(&self) -> bool {
        matches!(self, Self::Member | Self::Contested { .. })
    }
}

impl Members {
    /// Somebody claims to be this node: itself (`live`), or as others tell.
    pub(super) fn meet_self(&mut self, now: Duration, other: &Identity, live: bool) {
        let outlived = other.outlives(&self.me);
        if other.socket() == self.me.socket() {
            // From before this process, by a clock that was ahead.
            let is_paced = self.renewed.is_none_or(|last| now >= last + BETWEEN_RENEWALS);
            if outlived && is_paced {
                self.go_on_as(now, self.me.after(other));
            }
        } else if live && outlived {
            self.yield_to(now, other);
        } else if live {
            self.tell_of_twin(now, other, false);
            self.send(other.socket(), &Packet::Here(self.me.clone()));
        } else if outlived && matches!(self.standing, Standing::Member) {
            self.standing = Standing::Contested { other: other.clone(), unanswered: 0 };
            self.look_at_twin(now);
        }
    }

    pub(super) fn look_at_twin(&mut self, now: Duration) {
        let (Standing::Contested { other, unanswered } | Standing::Yielded { other, unanswered }) = &mut self.standing
        else {
            return;
        };
        let other = other.clone();
        if *unanswered < UNANSWERED_MAX {
            *unanswered += 1;
            let wait = if self.standing.takes_part() { CONTEST } else { CHECK };
            self.agenda.add(now + wait, Task::Twin);
            self.send(other.socket(), &Packet::Knock(self.me.clone()));
            return;
        }
        if matches!(self.standing, Standing::Yielded { .. }) {
            self.agenda.add(now + SETTLE_AFTER, Task::SettleMe);
        }
        self.standing = Standing::Member;
        self.go_on_as(now, self.me.after(&other));
    }

    fn yield_to(&mut self, now: Duration, other: &Identity) {
        if let Standing::Yielded { other: twin, unanswered } = &mut self.standing {
            *twin = other.clone();
            *unanswered = 0;
            return;
        }
        self.standing = Standing::Yielded { other: other.clone(), unanswered: 0 };
        self.agenda.clear();
        self.agenda.add(now + CHECK, Task::Twin);
        self.settled = false;
        self.doubts.clear();
        self.tuned_for = 1;
        self.swim = super::swim(&self.me, self.packet, &mut self.rng);
        for member in self.known.clear() {
            self.effects.push_back(Effect::Down(member));
        }
        self.tell_of_twin(now, other, true);
    }

    fn tell_of_twin(&mut self, now: Duration, other: &Identity, yielded: bool) {
        if self.twin_told.is_none_or(|last| now >= last + BETWEEN_REPORTS) {
            self.twin_told = Some(now);
            self.effects.push_back(Effect::Twin { addr: other.socket(), yielded });
        }
    }
}
