//! A stream from a peer, and whether it does well.

use std::time::Duration;

use crate::cluster::chain::{Beat, Hop};
use crate::image::NodeId;

use super::Opening;

/// A peer that says nothing for so long is given up. It beats every 200 ms.
pub(super) const SILENCE: Duration = Duration::from_millis(600);
/// So long a reader starves before it moves.
const STARVED: Duration = Duration::from_millis(600);
/// So far ahead is the node beyond the parent then, in bytes; of a small blob, this part of it.
const LAG: u64 = 2 << 20;
const LAG_PART: u64 = 4;
/// What comes within this time anyway isn't worth a move.
const WORTH_MOVING: Duration = Duration::from_secs(1);
/// And so much less than it receives comes in here.
const CLEARLY_LESS: f64 = 0.6;
/// Rates look back for so long: what this node itself held back shows in them until then.
const HELD_BACK: Duration = Duration::from_secs(1);

/// Where this node is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here {
    pub(super) size: Option<u64>,
    pub(super) frontier: u64,
    /// What comes of this blob, and how much more could come over the link, in bytes a second.
    pub(super) rate: f64,
    pub(super) room: u64,
}

#[derive(Debug)]
pub(super) struct Reading {
    pub(super) opening: Opening,
    pub(super) began: Duration,
    heard: Duration,
    /// What came is taken no sooner than then, by this node's own limits. Nothing else is heard meanwhile: it lies behind.
    rests_until: Duration,
    pub(super) is_open: bool,
    /// When its first bytes came.
    pub(super) fed_since: Option<Duration>,
    /// The parent, whom it reads from, and so on.
    pub(super) path: Vec<Hop>,
    starved_since: Option<Duration>,
    /// The best rate that was seen of those beyond the parent.
    pub(super) best: u64,
}

impl Reading {
    pub(super) const fn new(now: Duration, opening: Opening) -> Self {
        Self {
            opening,
            began: now,
            heard: now,
            rests_until: Duration::ZERO,
            is_open: false,
            fed_since: None,
            path: Vec::new(),
            starved_since: None,
            best: 0,
        }
    }

    /// The peer has said something, or sent.
    pub(super) const fn hear(&mut self, now: Duration) {
        self.heard = now;
    }

    /// It was heard at that time.
    pub(super) fn speaks(&mut self, at: Duration) {
        self.heard = self.heard.max(at);
    }

    /// It has sent more than may be taken until then.
    pub(super) fn rest(&mut self, now: Duration, until: Duration) {
        self.heard = now;
        self.rests_until = self.rests_until.max(until);
    }

    /// Since when nothing was heard that could have been.
    pub(super) fn silent_since(&self) -> Duration {
        self.heard.max(self.rests_until)
    }

    /// Does the peer have more than what is before this byte? One without a place has all of it.
    pub(super) fn has_more_than(&self, frontier: u64) -> bool {
        self.path.first().is_some_and(|hop| hop.ticket.is_none() || hop.frontier > frontier)
    }

    /// The parent, if it has less than is before this byte: nothing can come from it before it has more. Once something has,
    /// what it said of itself is only older than its bytes.
    pub(super) fn lagging_parent(&self, frontier: u64) -> Option<&Hop> {
        let parent = self.path.first().filter(|_| self.fed_since.is_none())?;
        (parent.ticket.is_some() && parent.frontier < frontier).then_some(parent)
    }

    /// Has the parent nothing, and one beyond it some?
    pub(super) fn parent_waits(&self) -> bool {
        let has_some = |hop: &Hop| hop.ticket.is_none() || hop.frontier > 0;
        self.path.split_first().is_some_and(|(parent, beyond)| !has_some(parent) && beyond.iter().any(has_some))
    }

    /// Do this node's own limits say how much comes?
    pub(super) fn is_held_back(&self, now: Duration) -> bool {
        !self.rests_until.is_zero() && now < self.rests_until + HELD_BACK
    }

    /// Takes in a beat. Says whether bytes come nearer, and whom to move to.
    pub(super) fn beat(&mut self, now: Duration, beat: Beat, here: Here) -> (bool, Option<Better>) {
        let Here { size, frontier, rate, room } = here;
        let before = self.path.first().map_or(0, |hop| hop.frontier);
        self.path = beat.path;
        let Some(parent) = self.path.first().copied() else { return (false, None) };
        let comes_nearer = parent.frontier > before && before <= frontier;
        let Some(beyond) = self.path.get(1).copied() else {
            self.starved_since = None;
            return (comes_nearer, None);
        };
        self.best = self.path.iter().skip(1).map(|hop| hop.rate).fold(self.best, u64::max);
        // Who has all there is to have receives nothing any more: what it received counts then. If nobody saw that, it may
        // give as much as there is room for here: else all behind a slow node got little from it until the end, and none of
        // it for so long that it looked elsewhere.
        let is_whole = beyond.ticket.is_none() || size.is_some_and(|size| beyond.frontier >= size);
        let known_rate = if beyond.rate > 0 { beyond.rate } else { self.best };
        let for_room = known_rate == 0 && is_whole;
        let beyond_rate = if for_room { room } else { known_rate };
        let waits_for_parent = parent.frontier <= frontier;
        let comes = if waits_for_parent { parent.rate as f64 } else { rate };
        let behind = beyond.frontier.saturating_sub(frontier.min(parent.frontier));
        // Where the link has nothing else to do, the end of a small blob is worth it too: all that is left then may be the
        // ends of those that come by way of a slow node.
        let is_worth_it = behind > size.map_or(LAG, |size| LAG.min(size / LAG_PART))
            || (for_room && behind as f64 > comes * WORTH_MOVING.as_secs_f64());
        let starves = is_worth_it && comes < CLEARLY_LESS * beyond_rate as f64;
        if !starves || self.is_held_back(now) {
            self.starved_since = None;
            return (comes_nearer, None);
        }
        let since = *self.starved_since.get_or_insert(now);
        let moves = now.saturating_sub(since) >= STARVED;
        (comes_nearer, moves.then_some(Better { node: beyond.node, for_room }))
    }
}

/// Who may give more than the parent.
pub(super) struct Better {
    pub(super) node: NodeId,
    /// Nothing says so but that this node's link has room.
    pub(super) for_room: bool,
}
