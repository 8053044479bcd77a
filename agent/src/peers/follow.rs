use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::chain::Chain;
use super::{Inner, Peer, Trace};
use crate::cluster::chain::{Credential, Key};
use crate::cluster::directory::Released;
use crate::cluster::follow;
use crate::image::{Access, Digest, NodeId, Registry};

/// What is looked for among the peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sought {
    /// The blob.
    pub digest: Digest,
    /// For which registry: what came to others under authorization is not there for it.
    pub registry: Registry,
    /// As which this node's own transfer runs.
    pub access: Access,
    /// As whom its upstreams are asked: what they refuse to one, they may give to another.
    pub credential: Credential,
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
    Peer(NodeId),
}

/// One transfer's part in the cluster's single download of a blob. Works on any runtime; what it needs of the cluster is
/// done by a task of the main one. Dropped before the end, it leaves the chain behind the caller's back.
///
/// Without a cluster, its turn is always to fetch everything from upstream.
#[derive(Debug)]
pub struct Follow(Part);

#[derive(Debug)]
enum Part {
    Alone,
    Chain(Place),
    #[cfg(test)]
    Script(super::script::Follow),
}

/// A reading's place in its chain; left when it is dropped.
struct Place {
    chain: Arc<Chain>,
    number: u64,
    changed: watch::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.chain.leave(self.number);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({}, {:?})", self.number, self.chain)
    }
}

impl Follow {
    /// One without a cluster.
    #[must_use]
    pub const fn alone() -> Self {
        Self(Part::Alone)
    }

    pub(super) fn begin(inner: &Arc<Inner>, sought: Sought, size: Option<u64>, frontier: u64, trace: &Trace) -> Self {
        let Sought { digest, registry, access, credential } = sought;
        let key = Key { digest, registry, access };
        let sought = follow::Sought { key, credential, zone: inner.zone.clone() };
        let (chain, number, changed) = Chain::begin(inner, sought, size, frontier, trace);
        Self(Part::Chain(Place { chain, number, changed }))
    }

    /// One that obeys a script.
    #[cfg(test)]
    pub(super) const fn scripted(script: super::script::Follow) -> Self {
        Self(Part::Script(script))
    }

    /// What to do now. Never waits.
    #[must_use]
    pub fn turn(&self) -> Turn {
        match &self.0 {
            Part::Alone => Turn::Upstream { upto: u64::MAX },
            Part::Chain(Place { chain, number, .. }) => match chain.turn(*number) {
                follow::Turn::Wait => Turn::Wait,
                follow::Turn::Upstream { upto } => Turn::Upstream { upto },
                follow::Turn::Peer(opening) => Turn::Peer(Peer::new(Arc::clone(chain), *number, opening)),
            },
            #[cfg(test)]
            Part::Script(script) => script.turn(),
        }
    }

    /// Ends when the turn may have changed since it was last looked at. Cancelling it loses nothing.
    pub async fn changed(&mut self) {
        match &mut self.0 {
            Part::Alone => std::future::pending().await,
            Part::Chain(place) => {
                // The chain, and with it the sender, lives as long as the place in it.
                let _ = place.changed.changed().await;
            }
            #[cfg(test)]
            Part::Script(script) => script.changed().await,
        }
    }

    /// Ends when an owner has said what it knows, or nobody is there to ask. Has no deadline of its own. Cancelling it
    /// loses nothing.
    pub async fn answered(&mut self) {
        while !self.is_answered() {
            self.changed().await;
        }
    }

    fn is_answered(&self) -> bool {
        match &self.0 {
            Part::Alone => true,
            Part::Chain(place) => place.chain.is_answered(place.number),
            #[cfg(test)]
            Part::Script(script) => !matches!(script.turn(), Turn::Wait),
        }
    }

    /// Upstreams that broke this digest for some node within the hour: what they deliver is verified before it goes out.
    #[must_use]
    pub fn broken_sources(&self) -> Vec<String> {
        match &self.0 {
            Part::Alone => Vec::new(),
            Part::Chain(place) => place.chain.broken_sources(place.number),
            #[cfg(test)]
            Part::Script(script) => script.broken_sources(),
        }
    }

    /// The blob has so many bytes.
    pub fn learnt_size(&mut self, size: u64) {
        match &self.0 {
            Part::Alone => {}
            Part::Chain(place) => place.chain.learnt_size(place.number, size),
            #[cfg(test)]
            Part::Script(script) => script.tell(super::script::Told::Size(size)),
        }
    }

    /// So many bytes have come of it, from whatever source and into whatever part of it.
    pub fn received(&self, bytes: u64) {
        if let Part::Chain(place) = &self.0 {
            place.chain.received(bytes);
        }
    }

    /// Every byte before `frontier` is here.
    pub fn arrived(&mut self, frontier: u64) {
        match &self.0 {
            Part::Alone => {}
            Part::Chain(place) => place.chain.arrived(place.number, frontier),
            #[cfg(test)]
            Part::Script(script) => script.arrived(frontier),
        }
    }

    /// What the turn named is no use.
    pub fn failed(&mut self, why: &Failed) {
        match &self.0 {
            Part::Alone => {}
            Part::Chain(place) => place.failed(why),
            #[cfg(test)]
            Part::Script(script) => script.failed(why),
        }
    }

    /// All of it is here and verified. Peers may read it from the store from now on.
    pub fn is_whole(&mut self) {
        match &self.0 {
            Part::Alone => {}
            Part::Chain(place) => place.chain.is_whole(place.number),
            #[cfg(test)]
            Part::Script(script) => script.tell(super::script::Told::Whole),
        }
    }

    /// The bytes don't hash to the digest: the upstreams that they came from, as far as known, or the peer, whose own copy
    /// was right.
    pub fn broke(&mut self, sources: &[String], peer: Option<NodeId>) {
        match &self.0 {
            Part::Alone => {}
            Part::Chain(Place { chain, number, .. }) => {
                if let Some(peer) = peer {
                    chain.inner().avoid(peer);
                }
                chain.tell(*number, |machine, now| machine.broke(now, sources.to_vec(), peer));
            }
            #[cfg(test)]
            Part::Script(script) => script.tell(super::script::Told::Broke(sources.to_vec(), peer)),
        }
    }
}

impl Place {
    fn failed(&self, why: &Failed) {
        let released = match why {
            Failed::Absent => Released::Absent,
            Failed::Unauthorized => Released::Unauthorized,
            Failed::Unreachable => Released::Unreachable,
            Failed::Peer(node) => return self.chain.useless(self.number, *node),
        };
        self.chain.tell(self.number, |machine, now| machine.upstream_failed(now, released));
    }
}
