//! From whom a reader is to read.

use std::cmp::Reverse;

use crate::cluster::chain::{Ailment, Ticket, Trouble};
use crate::image::{NodeId, Zone};

use super::members::{Reader, Readers};

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
    /// Who reads from the first of them, and gives way.
    pub(super) before: Option<NodeId>,
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
    /// The own zone goes first, and where it has anybody at all, no other is looked at. Those who are fast go before those
    /// who are slow (for who is slow itself: after), whole holders before readers, and of readers the oldest before the
    /// others: it has the most. To who is fast the slow give way, and to who stands in the parent's own zone others do: they
    /// go on behind it.
    pub(super) fn place(&self, readers: &Readers, holders: &[(NodeId, &Zone)]) -> Option<Placed> {
        let whole = holders.iter().map(|(node, zone)| Spot { node: *node, zone, slow: false, whole: true });
        let lower = readers.below(self.ticket);
        let lower = lower.map(|reader| Spot { node: reader.node, zone: &reader.zone, slow: reader.slow, whole: false });
        let spots: Vec<Spot<'_>> = whole.chain(lower).filter(|spot| self.is_fit(spot.node)).collect();
        let near = spots.iter().any(|spot| spot.zone == self.zone);
        let looked_at = spots.iter().filter(|spot| !near || spot.zone == self.zone);
        let mut free: Vec<&Spot<'_>> = looked_at.filter(|spot| self.has_room(readers, spot)).collect();
        free.sort_by_key(|spot| (spot.slow != self.slow, !spot.whole));
        let first = free.first()?;
        let others = readers.children(first.node).filter(|child| child.node != self.me);
        let before = if others.clone().count() < self.fan_out {
            None
        } else {
            let mut giving_way = others.filter(|child| self.gives_way(first, child));
            giving_way.next().map(|child| child.node)
        };
        let parents = free.iter().take(MAX_PARENTS).map(|spot| spot.node).collect();
        Some(Placed { parents, before })
    }

    /// Where nobody has room: who has the fewest readers all the same, and of these the youngest. Nobody stands far below it,
    /// should it send the reader on.
    pub(super) fn squeeze(&self, readers: &Readers, holders: &[(NodeId, &Zone)]) -> Option<Placed> {
        let whole = holders.iter().map(|(node, _)| *node);
        let lower = readers.below(self.ticket).map(|reader| reader.node);
        let is_full = |node| self.troubles.iter().any(|trouble| trouble.node == node && trouble.why == Ailment::Full);
        let fit = whole.chain(lower).filter(|node| self.is_fit(*node) || (*node != self.me && is_full(*node)));
        let fit = fit.enumerate();
        let (_, parent) = fit.min_by_key(|(rank, node)| (readers.children(*node).count(), Reverse(*rank)))?;
        Some(Placed { parents: vec![parent], before: None })
    }

    fn is_fit(&self, node: NodeId) -> bool {
        node != self.me && !self.troubles.iter().any(|trouble| trouble.node == node && trouble.why != Ailment::Slow)
    }

    fn has_room(&self, readers: &Readers, spot: &Spot<'_>) -> bool {
        let others = readers.children(spot.node).filter(|child| child.node != self.me);
        others.filter(|child| !self.gives_way(spot, child)).count() < self.fan_out
    }

    fn gives_way(&self, parent: &Spot<'_>, child: &Reader) -> bool {
        let is_foreign = child.zone != *parent.zone && self.zone == parent.zone;
        is_foreign || (child.slow && !self.slow)
    }
}
