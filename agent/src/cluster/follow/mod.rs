//! One blob's reading on this node: whom to ask, what to read from whom, when to move on, and when to go alone.

use std::time::Duration;

use crate::cluster::Owners;
use crate::cluster::chain::{Beat, Credential, Hop, Key, Parting, Ticket};
use crate::cluster::directory::{Answered, Ask, Released, Report, Verdict};
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

/// What to send. Answers and failures come back by number.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// To an owner; answered by [`Follow::answered`] or [`Follow::unanswered`].
    Ask {
        /// Which.
        number: u64,
        /// Whom.
        owner: NodeId,
        /// What.
        ask: Ask,
    },
    /// To an owner; answered by [`Follow::reported`] or [`Follow::unreported`]. Only reports under a lease need an answer.
    Report {
        /// Whom.
        owner: NodeId,
        /// What.
        report: Report,
    },
    /// This node's place has changed: its readers must know before anything is read under it ([`Serve::placed`]).
    ///
    /// [`Serve::placed`]: super::serve::Serve::placed
    Placed(Ticket),
}

/// One blob's reading on this node.
#[derive(Debug)]
pub struct Follow {}

impl Follow {
    /// Begins. `frontier`: every byte before it is here already.
    #[must_use]
    pub fn new(
        _now: Duration,
        _me: NodeId,
        _sought: Sought,
        _size: Option<u64>,
        _frontier: u64,
        _owners: Owners,
    ) -> Self {
        Self {}
    }
    /// What to do now.
    #[must_use]
    pub fn turn(&self) -> Turn {
        Turn::Wait
    }
    /// What is to be sent since the last call, in order. To be called after every other call.
    pub fn actions(&mut self) -> Vec<Action> {
        Vec::new()
    }
    /// An owner has answered.
    pub fn answered(&mut self, _now: Duration, _number: u64, _answered: Answered) {}
    /// An owner didn't, or can't be reached, or is being left alone.
    pub fn unanswered(&mut self, _now: Duration, _number: u64) {}
    /// An owner has judged a report.
    pub fn reported(&mut self, _now: Duration, _verdict: Verdict) {}
    /// A report didn't reach its owner.
    pub fn unreported(&mut self, _now: Duration) {}
    /// The owners of the blob have changed.
    pub fn owners_changed(&mut self, _now: Duration, _owners: Owners) {}
    /// A peer has begun to answer. `whole`: all of it is there and verified.
    pub fn opened(&mut self, _now: Duration, _opening: u64, _whole: bool) {}
    /// A peer's beat.
    pub fn beat(&mut self, _now: Duration, _opening: u64, _beat: Beat) {}
    /// A peer has ended the stream, or refused it.
    pub fn parted(&mut self, _now: Duration, _opening: u64, _parting: &Parting) {}
    /// A peer can't be reached, or the stream broke.
    pub fn lost(&mut self, _now: Duration, _opening: u64) {}
    /// The blob has so many bytes.
    pub fn learnt_size(&mut self, _now: Duration, _size: u64) {}
    /// Every byte before `frontier` is here.
    pub fn arrived(&mut self, _now: Duration, _frontier: u64) {}
    /// Upstream is no use.
    pub fn upstream_failed(&mut self, _now: Duration, _why: Released) {}
    /// All of it is here and verified.
    pub fn is_whole(&mut self, _now: Duration) {}
    /// The digest broke: the upstreams that the bytes came from, as far as known, or the node whose own copy was right.
    pub fn broke(&mut self, _now: Duration, _sources: Vec<String>, _node: Option<NodeId>) {}
    /// The pull is given up.
    pub fn leave(&mut self, _now: Duration) {}
    /// Time has passed.
    pub fn tick(&mut self, _now: Duration) {}
    /// When to call [`Self::tick`] next, at the latest. `None` once all of it is here, or it was left.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        None
    }
    /// This node's place.
    #[must_use]
    pub fn ticket(&self) -> Option<Ticket> {
        None
    }
    /// Whom this node reads from, and so on up to the root, for [`Serve::beat`](super::serve::Serve::beat).
    #[must_use]
    pub fn path(&self) -> &[Hop] {
        &[]
    }
    /// Bytes a second that come in.
    #[must_use]
    pub fn rate(&self) -> u64 {
        0
    }
    /// Upstreams that broke this digest for some node within the hour, as far as owners told.
    #[must_use]
    pub fn broken_sources(&self) -> &[String] {
        &[]
    }
}
