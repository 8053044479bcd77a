//! What a transfer's bytes come from: an upstream of the registry, or a peer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::PullError;
use super::direct::{Frames, Opened};
use super::received::By;
use crate::cluster::chain::Parting;
use crate::image::NodeId;
use crate::peers::{Peer, PeerError, PeerStream};
use crate::upstream::{Upstream, UpstreamError};

/// Where bytes can be read from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Upstream(Arc<Upstream>),
    Peer(Peer),
}

/// A source's answer, of which nothing or a first part has been read.
pub(super) enum Answer {
    Upstream(Box<Opened>),
    Peer(AtPeer),
}

/// A peer's answer, which may be used for whom the transfer is.
pub(super) struct AtPeer {
    pub(super) node: NodeId,
    pub(super) stream: Box<PeerStream>,
    /// The first byte that wasn't asked for; `None` for the end of the blob.
    pub(super) to: Option<u64>,
}

/// The bytes of an answer, in the pieces in which they come.
pub(super) enum Pieces {
    Upstream(Box<Frames>),
    Peer(AtPeer),
}

/// What a source did not give, and whose fault it is.
#[derive(Debug)]
pub(super) enum Fault {
    Upstream(Arc<Upstream>, UpstreamError),
    Peer(PeerFault),
}

/// Why a peer is no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerFault {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("ended its answer after {0} bytes, short of the blob")]
    Cut(u64),
    #[error("takes longer than {0:?} for a small blob")]
    Slow(Duration),
    #[error("sends more bytes than the blob has")]
    TooLong,
    #[error("says that the blob has {says} bytes, where it has {size}")]
    Length { says: u64, size: u64 },
    #[error("has what came under authorization, which is not for this transfer")]
    Closed,
    #[error("has what the registry doesn't confirm to be this caller's: {0}")]
    Unconfirmed(PullError),
}

impl Source {
    /// Whether both are the same one; of peers, as the same turn names it.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Upstream(one), Self::Upstream(other)) => Arc::ptr_eq(one, other),
            (Self::Peer(one), Self::Peer(other)) => one == other,
            _ => false,
        }
    }

    pub(super) const fn by(&self) -> By {
        match self {
            Self::Upstream(_) => By::Upstream,
            Self::Peer(_) => By::Peer,
        }
    }
}

impl PeerFault {
    /// The upstreams that the blob came from, where it turned out wrong at the peer.
    pub(super) fn broken(&self) -> Option<&[String]> {
        match self {
            Self::Peer(PeerError::Parted { parting: Parting::Broken(sources), .. }) => Some(sources),
            _ => None,
        }
    }
}

impl Pieces {
    /// The next piece; `None` at the end that the source announced.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        match self {
            Self::Upstream(frames) => {
                frames.frame().await.map_err(|error| Fault::Upstream(Arc::clone(frames.upstream()), error))
            }
            Self::Peer(AtPeer { stream, .. }) => stream.frame().await.map_err(|error| Fault::Peer(error.into())),
        }
    }

    /// Nothing is taken for so long, of this node's own will. A peer is not to seem silent or slow for it.
    pub(super) fn rest(&mut self, rest: Duration) {
        if let Self::Peer(AtPeer { stream, .. }) = self {
            stream.rests(rest);
        }
    }

    /// The error of an answer that ended in good order, and too early.
    pub(super) fn cut(&self, at: u64) -> Fault {
        match self {
            Self::Upstream(frames) => Fault::Upstream(Arc::clone(frames.upstream()), frames.cut(at)),
            Self::Peer(_) => Fault::Peer(PeerFault::Cut(at)),
        }
    }

    /// The error of an answer that goes on past the blob.
    pub(super) fn too_long(&self) -> Fault {
        match self {
            Self::Upstream(frames) => Fault::Upstream(Arc::clone(frames.upstream()), frames.too_long()),
            Self::Peer(_) => Fault::Peer(PeerFault::TooLong),
        }
    }
}
