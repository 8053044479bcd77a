//! The readers of one chain, and who reads from whom as far as the owner was told.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::cluster::chain::Ticket;
use crate::image::{NodeId, Zone};

/// The most readers of one chain.
const MAX_READERS: usize = 16_384;
/// A reader that wasn't heard of for so long has gone. Readers report every [`super::REPORT_READING_EVERY`].
const LIFE: Duration = Duration::from_secs(100);
/// From one ticket to the next: between them is room for others.
const SPACE: u64 = 1 << 32;
/// What part of the room between two is left before one that comes between them: those who come next come after it.
const PART: u64 = 64;
/// So far above another owner's tickets this one's begin: that one may have given out more than it was told of here.
const LEAP: u64 = SPACE << 16;

#[derive(Debug)]
pub(super) struct Reader {
    pub(super) node: NodeId,
    pub(super) zone: Zone,
    /// Whom it reads from.
    pub(super) parent: Option<NodeId>,
    /// Others take more in its place, or it fetched slowly.
    pub(super) slow: bool,
    /// Its lease has ended: it is about to ask for a place at the tail.
    pub(super) leaving: bool,
    /// Upstream didn't serve it, at that time.
    pub(super) failed: Option<Duration>,
    /// It said that it gets little, at that time, and where it was.
    pub(super) complained: Option<(Duration, u64)>,
    heard: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Readers {
    by_ticket: BTreeMap<Ticket, Reader>,
    by_node: HashMap<NodeId, Ticket>,
    /// Who reads from whom.
    children: HashMap<NodeId, Vec<Ticket>>,
    next: u64,
}

impl Readers {
    /// `leap`: another owner may have given out tickets of this chain.
    pub(super) fn new(leap: bool) -> Self {
        Self { next: if leap { LEAP } else { SPACE }, ..Self::default() }
    }

    /// Gives `node` a place: the one that it has, or a new one at the tail. `None`: there are too many.
    pub(super) fn enter(&mut self, now: Duration, run: u64, newcomer: Newcomer<'_>) -> Option<Ticket> {
        let Newcomer { node, zone, ticket, to_the_tail } = newcomer;
        if let Some(told) = ticket {
            let above = if told.issuer == run { SPACE } else { LEAP };
            self.next = self.next.max(told.number.saturating_add(above));
        }
        let known = self.by_node.get(&node).copied();
        let keeps = ticket.filter(|_| !to_the_tail);
        if let Some(ticket) = known.filter(|known| keeps == Some(*known)) {
            if let Some(reader) = self.by_ticket.get_mut(&ticket) {
                reader.heard = now;
                reader.leaving = false;
            }
            return Some(ticket);
        }
        let was_slow = self.remove(node).is_some_and(|reader| reader.slow);
        self.lose_children(node);
        if self.by_ticket.len() >= MAX_READERS {
            return None;
        }
        let taken = keeps.is_some_and(|ticket| self.by_ticket.contains_key(&ticket));
        let ticket = keeps.filter(|_| !taken).unwrap_or(Ticket { number: self.next, issuer: run });
        self.next = self.next.max(ticket.number.saturating_add(SPACE));
        let reader = Reader {
            node,
            zone: zone.clone(),
            parent: None,
            slow: was_slow,
            leaving: false,
            failed: None,
            complained: None,
            heard: now,
        };
        self.by_ticket.insert(ticket, reader);
        self.by_node.insert(node, ticket);
        Some(ticket)
    }

    /// Moves `node`, which has just come, between two tickets, if there is room.
    pub(super) fn squeeze_in(&mut self, run: u64, node: NodeId, low: Option<Ticket>, high: Ticket) -> Option<Ticket> {
        let low = low.map_or(0, |low| low.number);
        let room = high.number.checked_sub(low).filter(|room| *room > PART)?;
        let ticket = Ticket { number: low + (room / PART).max(1), issuer: run };
        if self.by_ticket.contains_key(&ticket) {
            return None;
        }
        let before = self.by_node.get(&node).copied()?;
        let reader = self.by_ticket.remove(&before)?;
        let siblings = reader.parent.and_then(|parent| self.children.get_mut(&parent));
        for sibling in siblings.into_iter().flatten().filter(|sibling| **sibling == before) {
            *sibling = ticket;
        }
        self.by_ticket.insert(ticket, reader);
        self.by_node.insert(node, ticket);
        Some(ticket)
    }

    pub(super) fn remove(&mut self, node: NodeId) -> Option<Reader> {
        let ticket = self.by_node.remove(&node)?;
        let reader = self.by_ticket.remove(&ticket)?;
        self.detach(ticket, reader.parent);
        Some(reader)
    }

    /// Nobody reads from `node` any more: its place is another, or it is gone.
    pub(super) fn lose_children(&mut self, node: NodeId) {
        for ticket in self.children.remove(&node).unwrap_or_default() {
            if let Some(reader) = self.by_ticket.get_mut(&ticket) {
                reader.parent = None;
            }
        }
    }

    /// `node` is still here.
    pub(super) fn heard_of(&mut self, now: Duration, node: NodeId) {
        if let Some(reader) = self.of_mut(node) {
            reader.heard = now;
        }
    }

    /// `node` reads from `parent` now.
    pub(super) fn attach(&mut self, now: Duration, node: NodeId, parent: Option<NodeId>) {
        let Some(ticket) = self.by_node.get(&node).copied() else { return };
        let Some(reader) = self.by_ticket.get_mut(&ticket) else { return };
        reader.heard = now;
        let before = std::mem::replace(&mut reader.parent, parent);
        if before != parent {
            self.detach(ticket, before);
            if let Some(parent) = parent {
                self.children.entry(parent).or_default().push(ticket);
            }
        }
    }

    fn detach(&mut self, ticket: Ticket, parent: Option<NodeId>) {
        let Some(parent) = parent else { return };
        let Some(children) = self.children.get_mut(&parent) else { return };
        children.retain(|child| *child != ticket);
        if children.is_empty() {
            self.children.remove(&parent);
        }
    }

    pub(super) fn ticket(&self, node: NodeId) -> Option<Ticket> {
        self.by_node.get(&node).copied()
    }

    pub(super) fn of(&self, node: NodeId) -> Option<&Reader> {
        self.by_ticket.get(&self.ticket(node)?)
    }

    pub(super) fn of_mut(&mut self, node: NodeId) -> Option<&mut Reader> {
        let ticket = self.ticket(node)?;
        self.by_ticket.get_mut(&ticket)
    }

    /// Those from whom a reader with this ticket may read, the oldest first.
    pub(super) fn below(&self, ticket: Ticket) -> impl DoubleEndedIterator<Item = &Reader> {
        self.by_ticket.range(..ticket).map(|(_, reader)| reader).filter(|reader| !reader.leaving)
    }

    /// Those who read from `node`.
    pub(super) fn children(&self, node: NodeId) -> impl Iterator<Item = &Reader> {
        let tickets = self.children.get(&node).map_or(&[][..], Vec::as_slice);
        tickets.iter().filter_map(|ticket| self.by_ticket.get(ticket))
    }

    /// All, in the order of their tickets.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Ticket, &Reader)> {
        self.by_ticket.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.by_ticket.len()
    }

    /// Drops who wasn't heard of for long.
    pub(super) fn sweep(&mut self, now: Duration) {
        let gone = self.by_ticket.values().filter(|reader| now.saturating_sub(reader.heard) > LIFE);
        let gone: Vec<NodeId> = gone.map(|reader| reader.node).collect();
        for node in gone {
            self.remove(node);
        }
    }
}

/// Who wants a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newcomer<'a> {
    pub(super) node: NodeId,
    pub(super) zone: &'a Zone,
    pub(super) ticket: Option<Ticket>,
    pub(super) to_the_tail: bool,
}
