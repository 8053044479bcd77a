use crate::image::{Access, Digest, NodeId, Registry};

use super::{Credential, Peer};

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
pub struct Follow {
    #[cfg(test)]
    script: Option<super::script::Follow>,
}

impl Follow {
    /// One without a cluster.
    #[must_use]
    pub const fn alone() -> Self {
        Self {
            #[cfg(test)]
            script: None,
        }
    }

    /// One that obeys a script.
    #[cfg(test)]
    pub(super) const fn scripted(script: super::script::Follow) -> Self {
        Self { script: Some(script) }
    }

    /// What to do now. Never waits.
    #[must_use]
    pub fn turn(&self) -> Turn {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.turn();
        }
        Turn::Upstream { upto: u64::MAX }
    }

    /// Ends when the turn may have changed since it was last looked at. Cancelling it loses nothing.
    pub async fn changed(&mut self) {
        #[cfg(test)]
        if let Some(script) = &mut self.script {
            return script.changed().await;
        }
        std::future::pending::<()>().await;
    }

    /// Upstreams that broke this digest for some node within the hour: what they deliver is verified before it goes out.
    #[must_use]
    pub fn broken_sources(&self) -> Vec<String> {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.broken_sources();
        }
        Vec::new()
    }

    /// The blob has so many bytes.
    pub fn learnt_size(&mut self, _size: u64) {
        #[cfg(test)]
        if let Some(script) = &self.script {
            script.tell(super::script::Told::Size(_size));
        }
    }

    /// Every byte before `frontier` is here.
    pub fn arrived(&mut self, _frontier: u64) {
        #[cfg(test)]
        if let Some(script) = &self.script {
            script.arrived(_frontier);
        }
    }

    /// What the turn named is no use.
    pub fn failed(&mut self, _why: &Failed) {
        #[cfg(test)]
        if let Some(script) = &self.script {
            script.failed(_why);
        }
    }

    /// All of it is here and verified. Peers may read it from the store from now on.
    pub fn is_whole(&mut self) {
        #[cfg(test)]
        if let Some(script) = &self.script {
            script.tell(super::script::Told::Whole);
        }
    }

    /// The bytes don't hash to the digest: the upstreams that they came from, as far as known, or the peer, whose own copy
    /// was right.
    pub fn broke(&mut self, _sources: &[String], _peer: Option<NodeId>) {
        #[cfg(test)]
        if let Some(script) = &self.script {
            script.tell(super::script::Told::Broke(_sources.to_vec(), _peer));
        }
    }
}
