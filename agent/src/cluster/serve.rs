//! Who reads a blob from this node: who is taken, who is parted from, and what is said to them.

use std::time::Duration;

use super::chain::{Beat, Hop, Parting, Ticket};
use crate::image::{NodeId, Zone};

/// One who wants to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Which node.
    pub node: NodeId,
    /// Where it stands.
    pub zone: Zone,
    /// Its place; `None` for who reads only what is whole.
    pub ticket: Option<Ticket>,
    /// It comes in place of this one.
    pub instead_of: Option<NodeId>,
    /// It knows of nobody else.
    pub insists: bool,
    /// The byte that it begins with.
    pub from: u64,
}

/// Who reads one blob from this node. Streams are numbered by whoever serves them.
#[derive(Debug)]
pub struct Serve {}

impl Serve {
    /// Nobody yet.
    #[must_use]
    pub fn new(_me: NodeId, _zone: Zone) -> Self {
        Self {}
    }
    /// Takes a reader, or says why not.
    ///
    /// # Errors
    /// How to part from it.
    pub fn admit(&mut self, _now: Duration, _stream: u64, _reader: &Reader) -> Result<(), Parting> {
        Ok(())
    }
    /// So many bytes have been handed to the connection of a stream since the last call.
    pub fn sent(&mut self, _now: Duration, _stream: u64, _bytes: u64) {}
    /// A stream has ended.
    pub fn ended(&mut self, _now: Duration, _stream: u64) {}
    /// This node's place has changed: readers whose tickets aren't higher get what is here now, and are parted from.
    pub fn placed(&mut self, _now: Duration, _ticket: Ticket) {}
    /// Every byte before `frontier` is here, of `size` if that is known.
    pub fn arrived(&mut self, _now: Duration, _frontier: u64, _size: Option<u64>) {}
    /// All of it is here and verified.
    pub fn is_whole(&mut self, _now: Duration) {}
    /// How far a stream may go: `None` without bound; else it is parted from as [`Parting::Yielded`] when that is sent.
    #[must_use]
    pub fn bound(&self, _stream: u64) -> Option<u64> {
        None
    }
    /// Streams that are to be ended now, and how; each is said once and isn't among the readers any more.
    pub fn partings(&mut self) -> Vec<(u64, Parting)> {
        Vec::new()
    }
    /// What to say every [`BEAT_EVERY`](super::chain::BEAT_EVERY): `upwards` and `rate` as the [`Follow`](super::follow::Follow) says.
    #[must_use]
    pub fn beat(&self, _rate: u64, _upwards: &[Hop]) -> Beat {
        Beat { path: Vec::new() }
    }
    /// Time has passed.
    pub fn tick(&mut self, _now: Duration) {}
    /// When to call [`Self::tick`] next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        None
    }
    /// Who reads.
    pub fn readers(&self) -> impl Iterator<Item = NodeId> {
        std::iter::empty()
    }
}
