//! From whom a reader is to read.

use crate::cluster::chain::{Ailment, Ticket, Trouble};
use crate::image::{NodeId, Zone};

use super::members::Readers;

/// The most parents that an answer names.
const MAX_PARENTS: usize = 3;
/// Up to this size, a node has several readers: what counts is how soon the bytes begin, not how fast they flow.
const TINY: u64 = 64 << 10;
const READERS_OF_TINY: usize = 4;

/// How many read from one node, of a blob of this size.
///
/// One, for the upload of a node is halved by two. Small ones are handed on in a tree.
pub(crate) fn fan_out(size: Option<u64>) -> usize {
    match size {
        Some(size) if size <= TINY => READERS_OF_TINY,
        _ => 1,
    }
}

/// Where a reader is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) parents: Vec<NodeId>,
    pub(super) instead_of: Option<NodeId>,
}

/// What is known of who is to be placed.
pub(super) struct Placing<'a> {
    pub(super) me: NodeId,
    pub(super) ticket: Ticket,
    pub(super) zone: &'a Zone,
    pub(super) slow: bool,
    pub(super) troubles: &'a [Trouble],
    pub(super) fan_out: usize,
}

/// Where there may be room.
struct Spot<'a> {
    node: NodeId,
    zone: &'a Zone,
    slow: bool,
    whole: bool,
}

impl Placing<'_> {
    /// The best places, from whole holders (with their zones) and the readers with lower tickets. `None`: there is no room.
    ///
    /// The own zone goes first, and where it has anybody at all, no other is looked at. Whole holders go before readers, those
    /// who are fast before those who are slow (for who is slow itself: after), and of readers the oldest before the others: it
    /// has the most.
    pub(super) fn place(&self, readers: &Readers, holders: &[(NodeId, &Zone)]) -> Option<Placed> {
        let whole = holders.iter().map(|(node, zone)| Spot { node: *node, zone, slow: false, whole: true });
        let lower = readers.below(self.ticket);
        let lower = lower.map(|reader| Spot { node: reader.node, zone: &reader.zone, slow: reader.slow, whole: false });
        let spots: Vec<Spot<'_>> = whole.chain(lower).filter(|spot| self.is_fit(spot.node)).collect();
        let is_near = |spot: &&Spot<'_>| spot.zone == self.zone;
        let near = spots.iter().any(|spot| is_near(&spot));
        let spots = || spots.iter().filter(|spot| !near || is_near(spot));

        let mut free: Vec<&Spot<'_>> = spots().filter(|spot| self.has_room(readers, spot)).collect();
        free.sort_by_key(|spot| (spot.slow != self.slow, !spot.whole));
        let is_best_slow = free.first().is_none_or(|spot| spot.slow);
        if is_best_slow && !self.slow {
            // All who are fast have a reader: is one of these slow?
            let replaced = spots().filter(|spot| !spot.slow).find_map(|spot| {
                let mut children = readers.children(spot.node);
                let slow = children.find(|child| child.slow && child.node != self.me)?;
                Some((spot.node, slow.node))
            });
            if let Some((parent, slow)) = replaced {
                return Some(Placed { parents: vec![parent], instead_of: Some(slow) });
            }
        }
        let parents: Vec<NodeId> = free.iter().take(MAX_PARENTS).map(|spot| spot.node).collect();
        if parents.is_empty() { None } else { Some(Placed { parents, instead_of: None }) }
    }

    /// Where nobody has room: who has the fewest readers, all the same.
    pub(super) fn squeeze(&self, readers: &Readers, holders: &[(NodeId, &Zone)]) -> Option<Placed> {
        let whole = holders.iter().map(|(node, _)| *node);
        let lower = readers.below(self.ticket).map(|reader| reader.node);
        let fit = whole.chain(lower).filter(|node| self.is_fit(*node));
        let parent = fit.min_by_key(|node| readers.children(*node).count())?;
        Some(Placed { parents: vec![parent], instead_of: None })
    }

    fn is_fit(&self, node: NodeId) -> bool {
        node != self.me && !self.troubles.iter().any(|trouble| trouble.node == node && trouble.why != Ailment::Slow)
    }

    fn has_room(&self, readers: &Readers, spot: &Spot<'_>) -> bool {
        // To who stands in the parent's own zone, others give way.
        let counts = |zone: &Zone| self.zone != spot.zone || zone == self.zone;
        let taken = readers.children(spot.node).filter(|child| child.node != self.me && counts(&child.zone)).count();
        taken < self.fan_out
    }
}
