use bytes::Bytes;

use crate::image::{Access, MediaType, NodeId, Registry};

/// Another node that a blob can be read from.
#[derive(Debug, Clone)]
pub struct Peer {
    node: NodeId,
    #[cfg(test)]
    script: Option<super::script::Peering>,
}

impl Peer {
    #[cfg(test)]
    pub(super) const fn with_script(node: NodeId, script: super::script::Peering) -> Self {
        Self { node, script: Some(script) }
    }

    #[cfg(test)]
    pub(super) const fn script(&self) -> Option<&super::script::Peering> {
        self.script.as_ref()
    }

    /// Which node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Opens the blob, from a byte on and to another (`None`: its end).
    ///
    /// # Errors
    /// When the peer can't be reached, or doesn't give it.
    pub async fn open(&self, _from: u64, _to: Option<u64>) -> Result<PeerStream, PeerError> {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.open(_from, _to).await;
        }
        Err(PeerError::Unreachable { node: self.node, why: "there is no cluster".to_owned() })
    }
}

/// What a peer says before the bytes.
#[derive(Debug, Clone)]
pub struct Head {
    /// The whole blob's, in bytes.
    pub size: u64,
    /// As its registry gave it.
    pub media_type: MediaType,
    /// Which registry gave it.
    pub registry: Registry,
    /// And to whom.
    pub access: Access,
    /// All of it is there and verified.
    pub whole: bool,
    /// The upstreams that it came from, as far as it isn't whole.
    pub sources: Vec<String>,
}

/// A blob on its way from a peer.
#[derive(Debug)]
pub struct PeerStream {
    head: Head,
    #[cfg(test)]
    script: Option<super::script::Stream>,
}

impl PeerStream {
    #[cfg(test)]
    pub(super) const fn with_script(head: Head, script: super::script::Stream) -> Self {
        Self { head, script: Some(script) }
    }

    /// What the peer says of it.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The next bytes, checked against the peer's checksum; `None` when all that was asked for came. Cancelling it loses
    /// nothing.
    ///
    /// # Errors
    /// When the peer ends, errs, falls silent, or parts from us.
    pub async fn frame(&mut self) -> Result<Option<Bytes>, PeerError> {
        #[cfg(test)]
        if let Some(script) = &mut self.script {
            return script.frame().await;
        }
        Ok(None)
    }

    /// What the peer said of the whole at the end: known once [`Self::frame`] has given `None`, at most a second later.
    pub async fn parted(&mut self) -> Parted {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.parted();
        }
        Parted::Unknown
    }
}

/// What a peer knows of the whole at the end of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parted {
    /// Its digest holds there.
    Held,
    /// It doesn't: it came so from these upstreams.
    Broken(Vec<String>),
    /// It didn't say.
    Unknown,
}

/// Why a peer didn't give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection, or it broke.
    #[error("peer {node} can't be reached: {why}")]
    Unreachable {
        /// Which.
        node: NodeId,
        /// As the connection says.
        why: String,
    },
    /// Nothing came from it for too long.
    #[error("peer {node} fell silent")]
    Silent {
        /// Which.
        node: NodeId,
    },
    /// Bytes came that aren't what was sent.
    #[error("what peer {node} sent doesn't have the checksum that it sent with it")]
    Damaged {
        /// Which.
        node: NodeId,
    },
    /// It said something that makes no sense.
    #[error("peer {node} says what can't be: {what}")]
    Senseless {
        /// Which.
        node: NodeId,
        /// What.
        what: &'static str,
    },
    /// It doesn't give it, or no more of it: the turn changes.
    #[error("peer {node} parts: {why}")]
    Parted {
        /// Which.
        node: NodeId,
        /// For people.
        why: &'static str,
    },
}
