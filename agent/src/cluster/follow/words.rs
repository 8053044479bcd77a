//! What a reading is told, and what it wants done.

use crate::cluster::chain::{Credential, Key, Ticket};
use crate::cluster::directory::{Ask, Report};
use crate::image::{NodeId, Zone};

/// What is read, and for whom.
#[derive(Debug, Clone)]
pub struct Sought {
    /// What.
    pub key: Key,
    /// As whom this node's upstreams are asked.
    pub credential: Credential,
    /// Where this node stands.
    pub zone: Zone,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing: an answer is on its way.
    Wait,
    /// Fetch from upstream, from the frontier on.
    Upstream {
        /// The first byte that isn't to be fetched; `u64::MAX` for all.
        upto: u64,
    },
    /// Read from a peer, from the frontier on. A stream for another opening is to be closed.
    Peer(Opening),
}

/// A stream to be opened, or open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Tells openings apart, also those of the same node; grows.
    pub number: u64,
    /// From whom to read.
    pub node: NodeId,
    /// The reader's place.
    pub ticket: Option<Ticket>,
    /// The sender's reader that this one comes in place of.
    pub instead_of: Option<NodeId>,
    /// Nobody else is known.
    pub insists: bool,
}

/// What to send, and whom to tell. Answers and failures come back by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To an owner; answered by [`Follow::answered`](super::Follow::answered) or
    /// [`Follow::unanswered`](super::Follow::unanswered).
    Ask {
        /// Which.
        number: u64,
        /// Whom.
        owner: NodeId,
        /// What.
        ask: Box<Ask>,
    },
    /// To an owner; of reports with a lease the verdict comes back by [`Follow::reported`](super::Follow::reported), or
    /// their failure by [`Follow::unreported`](super::Follow::unreported).
    Report {
        /// Whom.
        owner: NodeId,
        /// What.
        report: Box<Report>,
    },
    /// This node has another place: its readers are to be told before anything is read under it, by
    /// [`Serve::placed`](crate::cluster::serve::Serve::placed).
    Placed(Ticket),
    /// This node is about to take another place: [`Serve::yields`](crate::cluster::serve::Serve::yields).
    Yields,
    /// That one lives and has what is missing here, and has sent nothing for as long as this node had patience: other
    /// readings are to [pass it over](super::Follow::pass_over).
    KeptWaiting(NodeId),
}
