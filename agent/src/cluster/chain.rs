//! What nodes say to each other about one blob: keys, tickets, beats and partings.

use std::fmt;
use std::time::Duration;

use crate::image::{Access, Digest, NodeId, Registry};

/// How often a sender says that it is alive, and how far it has got.
pub const BEAT_EVERY: Duration = Duration::from_millis(200);

/// What a chain of readers is of: transfers under way are shared only among those who ask the same registry as the same
/// kind of caller. What is whole and public is found by any key of its digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The blob.
    pub digest: Digest,
    /// The registry that is asked for it.
    pub registry: Registry,
    /// As which the asker's own transfer runs.
    pub access: Access,
}

/// A place in a chain. Bytes flow from lower tickets to higher ones and never otherwise, so no circle can arise.
///
/// The order is total over all that owners ever gave out: an owner that takes over goes on above the highest that it has
/// been told of, and where two give out the same number, the issuer decides.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// Grows with everybody who joins.
    pub number: u64,
    /// The run of the owner that gave it out: a random number.
    pub issuer: u64,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:04x}", self.number, self.issuer >> 48)
    }
}

/// The right to fetch a range from upstream, by a random number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease(pub u64);

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:016x})", self.0)
    }
}

/// As whom a registry is asked, told apart without telling who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Credential {
    /// The caller has shown nothing.
    None,
    /// Whatever anybody gets.
    Anonymous,
    /// Some credentials, by a hash under a key of the cluster.
    Keyed([u8; 32]),
}

/// One node of the path that bytes take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Which.
    pub node: NodeId,
    /// Its place; `None` for one that is whole and never was in a chain.
    pub ticket: Option<Ticket>,
    /// Every byte before this one is there.
    pub frontier: u64,
    /// Bytes a second that it receives.
    pub rate: u64,
}

/// What a sender says every [`BEAT_EVERY`], whether or not there are bytes to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The sender, then whom it reads from, and so on up to the root; at most [`Beat::MAX_PATH`], never empty.
    pub path: Vec<Hop>,
}

impl Beat {
    /// The most hops that a beat names.
    pub const MAX_PATH: usize = 8;
}

/// How a sender ends a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parting {
    /// All that was asked for has been sent, and the whole blob is proven.
    Held,
    /// All that was asked for has been sent; the whole isn't proven yet.
    Sent,
    /// The blob was proven to be wrong; it came from these upstreams.
    Broken(Vec<String>),
    /// The sender has taken another place in the chain, and has sent what it had before.
    Yielded,
    /// Another reader came in this one's place, and takes more.
    Displaced,
    /// The sender's ticket isn't lower than the reader's.
    NotLower,
    /// Not here, or not for this key.
    Absent,
    /// More readers than the sender takes: these are its own, from which the reader may read.
    Full(Vec<NodeId>),
    /// It ended short here too.
    Failed,
    /// The sender ends.
    Stopping,
}

/// A node that was no use to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// Which.
    pub node: NodeId,
    /// Why.
    pub why: Ailment,
}

/// Why a node was no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ailment {
    /// It can't be reached, or fell silent.
    Silent,
    /// Its bytes come slowly.
    Slow,
    /// It takes no more readers, or not this one.
    Full,
    /// It hasn't got the blob.
    Absent,
    /// Its bytes were wrong.
    Wrong,
}
