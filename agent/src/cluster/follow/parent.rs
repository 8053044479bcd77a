//! What a parent says, and when it is left for another.

use std::time::Duration;

use crate::cluster::chain::{Ailment, Beat, Parting};
use crate::image::NodeId;

use super::reading::{Better, Here, Reading};
use super::seek::Candidate;
use super::{Follow, Source};

/// A reader moves at most this often to one that does better, and not for so long when it was found to be slow itself.
const MOVES_EVERY: Duration = Duration::from_secs(1);
const SLOW_STAYS: Duration = Duration::from_secs(10);

impl Follow {
    /// A peer has begun to answer.
    pub fn opened(&mut self, now: Duration, opening: u64) {
        let Some(reading) = self.reading(opening) else { return };
        reading.hear(now);
        if !std::mem::replace(&mut reading.is_open, true) {
            // Who was named besides was named for a moment.
            self.candidates.clear();
            self.tell_reading(now);
        }
    }

    /// Something came from a peer at that time, be it on another stream.
    pub fn speaks(&mut self, opening: u64, at: Duration) {
        if let Some(reading) = self.reading(opening) {
            reading.speaks(at);
        }
    }

    /// A peer's beat.
    pub fn beat(&mut self, now: Duration, opening: u64, beat: Beat) {
        let room = if self.room_is_refuted { 0 } else { self.room };
        let here = Here { size: self.size, frontier: self.frontier, rate: self.meter.rate(now), room };
        let frontier = self.frontier;
        let (me, ticket) = (self.me, self.ticket);
        let stays = now < self.stays_until;
        let moved_long_ago = self.moved.is_none_or(|moved| now.saturating_sub(moved) >= MOVES_EVERY);
        let Some(reading) = self.reading(opening) else { return };
        reading.hear(now);
        // Who has sent nothing yet, since it has less than this node has, isn't slow by this node's doing.
        let has_less = reading.fed_since.is_none() && beat.path.first().is_some_and(|hop| hop.frontier < frontier);
        let may_move = moved_long_ago && (!stays || has_less);
        // Under an older ticket this node may still be on paths that were told further and further.
        let is_circle = beat.path.iter().any(|hop| hop.node == me && hop.ticket == ticket);
        let parent = reading.opening.node;
        let (comes_nearer, better) = reading.beat(now, beat, here);
        if is_circle {
            // Can't be, by the order of tickets; a node that breaks it is none to wait for.
            self.troubles.note(now, parent, Ailment::Full);
            self.seek_anew(now);
            return;
        }
        if comes_nearer {
            self.patience.sign(now);
        }
        // Beyond the parent may be this node, which still gives what it had at its place before.
        let is_no_use = |better: NodeId| better == me || self.speaks_against(now, better);
        if let Some(Better { node: better, for_room }) = better.filter(|better| may_move && !is_no_use(better.node)) {
            self.moved = Some(now);
            self.tried_for_room = for_room.then_some(better);
            self.candidates.clear();
            self.candidates.push_back(Candidate { instead_of: Some(parent), ..Candidate::of(better) });
            self.candidates.push_back(Candidate::of(parent));
            self.try_next(now);
        }
    }

    /// These keep other readings of this node waiting: none of them is gone to, as long as upstream may have the bytes.
    pub fn pass_over(&mut self, nodes: Vec<NodeId>) {
        self.passed_over = nodes;
    }

    /// More came from a peer than this node's own limits let it take until then. That nothing more comes meanwhile, and that
    /// it comes slowly, is none of the peer's doing.
    pub fn rests(&mut self, now: Duration, opening: u64, until: Duration) {
        let Some(reading) = self.reading(opening) else { return };
        reading.rest(now, until);
        self.patience.rest(now, until);
        self.complaint.fed(until);
    }

    /// A peer has ended the stream, or refused it.
    pub fn parted(&mut self, now: Duration, opening: u64, parting: &Parting) {
        let Some(reading) = self.reading(opening) else { return };
        let node = reading.opening.node;
        if self.has_all() {
            return;
        }
        match parting {
            Parting::Yielded => self.leave_parent(now, None),
            Parting::NotLower => self.leave_parent(now, Some(Ailment::Full)),
            Parting::Full(others) => self.sent_on(now, others),
            Parting::Displaced => {
                self.stays_until = now + SLOW_STAYS;
                self.to_the_tail = true;
                self.slow = true;
                self.troubles.note(now, node, Ailment::Full);
                self.seek_anew(now);
            }
            Parting::Absent => self.leave_parent(now, Some(Ailment::Absent)),
            Parting::Broken(_) => self.leave_parent(now, Some(Ailment::Wrong)),
            Parting::Held | Parting::Sent | Parting::Failed | Parting::Stopping => {
                self.leave_parent(now, Some(Ailment::Silent));
            }
        }
    }

    /// A peer can't be reached, or the stream broke.
    pub fn lost(&mut self, now: Duration, opening: u64) {
        if self.reading(opening).is_some() && !self.has_all() {
            self.leave_parent(now, Some(Ailment::Silent));
        }
    }

    fn reading(&mut self, opening: u64) -> Option<&mut Reading> {
        match &mut self.source {
            Source::Peer(reading) if reading.opening.number == opening => Some(reading),
            _ => None,
        }
    }
}
