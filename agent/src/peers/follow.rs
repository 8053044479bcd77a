use crate::image::{Access, Digest, Registry};

use super::Peer;

/// What is looked for among the peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sought {
    /// The blob.
    pub digest: Digest,
    /// For which registry: what came to others under authorization is not there for it.
    pub registry: Registry,
    /// As which this node's own transfer runs.
    pub access: Access,
}

/// What a transfer is to do now.
#[derive(Debug, Clone)]
pub enum Turn {
    /// Nothing yet: the cluster is asked, for a moment.
    Wait,
    /// Fetch from upstream what is missing before this byte, and nothing beyond; `u64::MAX` for all of it.
    Upstream {
        /// The first byte that isn't to be fetched.
        upto: u64,
    },
    /// Read from a peer, from the frontier on.
    Peer(Peer),
}

/// Why a source is no use any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// No upstream has it.
    Absent,
    /// Upstreams don't give it to this caller.
    Unauthorized,
    /// None answers, or goes on.
    Unreachable,
    /// A peer ended, errs, or fell silent.
    Peer,
}

/// One transfer's part in the cluster's single download of a blob.
///
/// Without a cluster, its turn is always to fetch everything from upstream.
#[derive(Debug)]
pub struct Follow {}

impl Follow {
    /// One without a cluster.
    #[must_use]
    pub const fn alone() -> Self {
        Self {}
    }

    /// What to do now.
    #[must_use]
    pub const fn turn(&self) -> Turn {
        Turn::Upstream { upto: u64::MAX }
    }

    /// Ends when the turn may have changed. Cancelling it loses nothing.
    pub async fn changed(&mut self) {
        std::future::pending::<()>().await;
    }

    /// The blob has so many bytes.
    pub const fn learnt_size(&mut self, _size: u64) {}

    /// Every byte before `frontier` is here.
    pub const fn arrived(&mut self, _frontier: u64) {}

    /// What the present turn named is no use.
    pub const fn failed(&mut self, _why: &Failed) {}

    /// All of it is here and verified. Peers may read it from the store from now on.
    pub const fn is_whole(&mut self) {}

    /// The bytes don't hash to the digest: the upstreams that they came from, as far as known, or the peer.
    pub const fn broke(&mut self, _sources: &[String], _peer: Option<&Peer>) {}
}
