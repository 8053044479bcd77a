//! From whom a reader is to read.
//!
//! A chain is sorted by its tickets: each reads from the one before it. Senders see to it themselves, by handing a reader on
//! to one that comes between; so all that is decided here is where a newcomer's ticket comes in, and whom to go to.

use crate::cluster::chain::{Ailment, Ticket, Trouble};
use crate::image::{NodeId, Zone};

use super::members::{Reader, Readers};

/// The most parents that an answer names.
pub(super) const MAX_PARENTS: usize = 3;
/// Up to this size a blob goes from whole holders, each of which has several readers: what counts is how soon the bytes
/// begin, not how fast they flow. In bytes.
pub const PASSED_ON_WHOLE: u64 = 64 << 10;
const READERS_OF_TINY: usize = 4;

/// How many read from one node, of a blob of this size.
///
/// One, for the upload of a node is halved by two. Small ones are handed on in a tree.
pub(crate) fn fan_out(size: Option<u64>) -> usize {
    match size {
        Some(size) if size <= PASSED_ON_WHOLE => READERS_OF_TINY,
        _ => 1,
    }
}

/// What is known of who is to be placed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placing<'a> {
    pub(super) me: NodeId,
    pub(super) zone: &'a Zone,
    pub(super) slow: bool,
    pub(super) troubles: &'a [Trouble],
    pub(super) fan_out: usize,
}

impl Placing<'_> {
    /// Between which tickets a newcomer comes; `None` for the end of the chain: behind those of its zone, but before those
    /// who are slow, unless it is slow itself. Not behind one that leaves: it would be the lowest when that one has gone, and
    /// begin to fetch what those who read from it have.
    pub(super) fn between(&self, readers: &Readers, holders: &[(NodeId, &Zone)]) -> Option<(Option<Ticket>, Ticket)> {
        let others = || readers.iter().filter(|(_, reader)| reader.node != self.me);
        let is_like = |reader: &Reader| !reader.leaving && (reader.slow == self.slow || !reader.slow);
        let near = others().rfind(|(_, reader)| reader.zone == *self.zone && is_like(reader));
        let reads_at_home = !self.slow && holders.iter().any(|(_, zone)| *zone == self.zone);
        let after = match near {
            Some(near) => Some(near),
            // Behind those of another zone who read from its own zone's holder, it would get from there what it has here.
            None if reads_at_home => None,
            // A zone's first stands behind all others, but the slow ones.
            None => others().rfind(|(_, reader)| is_like(reader)),
        };
        let after = after.map(|(ticket, _)| *ticket);
        let next = others().find(|(ticket, _)| Some(**ticket) > after);
        next.map(|(next, _)| (after, *next))
    }

    /// Whom to go to: the best first, whole holders (with their zones) and those with lower tickets. Empty: there is nobody.
    ///
    /// The own zone goes first, and where it has anybody at all, no other is looked at. Whole holders that have room go
    /// before readers, and of readers the one right before this ticket; of tiny blobs the first that has room.
    pub(super) fn parents(&self, readers: &Readers, ticket: Ticket, holders: &[(NodeId, &Zone)]) -> Vec<NodeId> {
        let is_fit = |node: NodeId| node != self.me && !self.is_troubled(node);
        let whole = || holders.iter().copied().filter(|(node, _)| is_fit(*node));
        let lower = || readers.below(ticket).filter(|reader| is_fit(reader.node));
        let near = whole().any(|(_, zone)| zone == self.zone) || lower().any(|reader| reader.zone == *self.zone);
        let is_looked_at = |zone: &Zone| !near || zone == self.zone;
        let has_room =
            |node: NodeId| readers.children(node).filter(|child| child.node != self.me).count() < self.fan_out;
        let whole = || whole().filter(|(_, zone)| is_looked_at(zone)).map(|(node, _)| node);
        let lower = || lower().filter(|reader| is_looked_at(&reader.zone)).map(|reader| reader.node);
        let mut parents: Vec<NodeId> = whole().filter(|node| has_room(*node)).take(MAX_PARENTS).collect();
        if self.fan_out > 1 {
            parents.extend(lower().filter(|node| has_room(*node)).take(MAX_PARENTS));
        }
        parents.extend(lower().rev().take(MAX_PARENTS));
        if parents.is_empty() {
            // All are taken, and nobody reads who could be read from: better from one of two than not at all.
            parents.extend(whole().take(MAX_PARENTS));
        }
        parents.truncate(MAX_PARENTS);
        parents
    }

    fn is_troubled(&self, node: NodeId) -> bool {
        self.troubles.iter().any(|trouble| trouble.node == node && trouble.why != Ailment::Slow)
    }
}
