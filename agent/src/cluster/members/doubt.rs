//! Doubts: somebody who uses a node says that it doesn't answer.

use std::time::Duration;

use foca::State;

use crate::image::NodeId;

use super::Members;
use super::agenda::Task;
use super::identity::Identity;
use super::packet::Packet;
use super::tuning;

/// How often it is asked before it is suspected.
const ASK: u32 = 4;
/// And how long it has for each answer.
const PATIENCE: Duration = Duration::from_millis(250);
/// At most so many at a time: a node that has lost its own network doubts everybody.
const DOUBTS_MAX: usize = 8;

/// A node that is being asked whether it is alive.
#[derive(Debug)]
pub(super) struct Doubt {
    asked: u32,
}

impl Members {
    /// A node doesn't answer, as far as its user can tell: it is probed now rather than when its turn comes. One that
    /// doesn't answer for a second is suspected, as SWIM does it: it has some seconds to contradict.
    pub fn suspect(&mut self, now: Duration, node: NodeId) {
        let is_up = self.known.identity(node).is_some_and(|identity| self.known.is_up(identity));
        if is_up && self.doubts.len() < DOUBTS_MAX && !self.doubts.contains_key(&node) {
            self.doubts.insert(node, Doubt { asked: 0 });
            self.look_at_doubt(now, node);
        }
    }

    /// It is alive.
    pub(super) fn heard_of(&mut self, node: NodeId) {
        self.doubts.remove(&node);
    }

    pub(super) fn look_at_doubt(&mut self, now: Duration, node: NodeId) {
        let Some(doubt) = self.doubts.get_mut(&node) else { return };
        let Some(identity) = self.known.identity(node).cloned() else { return };
        if doubt.asked < ASK {
            doubt.asked += 1;
            self.agenda.add(now + PATIENCE, Task::Doubt(node));
            self.send(identity.socket(), &Packet::Knock(self.me.clone()));
            return;
        }
        self.doubts.remove(&node);
        let Some((State::Alive | State::Suspect, incarnation)) = self.state_of(&identity) else { return };
        // Where it is suspected already, others have given it its time; how that ended may have been missed here.
        let suspect = foca::Member::new(identity.clone(), incarnation, State::Suspect);
        let _ = self.swim(now, |swim, out| swim.apply_many(std::iter::once(suspect), true, out));
        let until = now + tuning::config(self.tuned_for, self.packet).suspect_to_down_after;
        self.agenda.add(until, Task::Bury { identity, incarnation });
    }

    pub(super) fn bury(&mut self, now: Duration, identity: Identity, incarnation: foca::Incarnation) {
        if self.state_of(&identity) == Some((State::Suspect, incarnation)) {
            let down = foca::Member::new(identity, incarnation, State::Down);
            let _ = self.swim(now, |swim, out| swim.apply_many(std::iter::once(down), true, out));
        }
    }

    pub(super) fn state_of(&self, identity: &Identity) -> Option<(State, foca::Incarnation)> {
        let member = self.swim.iter_membership_state().find(|member| member.id() == identity)?;
        Some((member.state(), member.incarnation()))
    }
}
