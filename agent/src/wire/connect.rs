use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::refusal::Reason;
use super::{Identity, IdentityError, WireMetrics};
use crate::image::NodeId;

/// From the first packet to the end of the handshake. Peers are near: who takes longer is of no help to a pull.
const DEADLINE: Duration = Duration::from_secs(1);

/// Why there is no connection to a node.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("node {node} at {address} did not take a connection within {} s", DEADLINE.as_secs())]
    Silent { node: NodeId, address: SocketAddr },
    #[error("node {node} at {address} can't be reached")]
    Tcp { node: NodeId, address: SocketAddr, source: io::Error },
    #[error("no TLS with node {node} at {address}")]
    Tls { node: NodeId, address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Connects to one node at one address, with the certificate of the moment.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    pub(super) identity: Arc<Identity>,
    pub(super) node: NodeId,
    pub(super) address: SocketAddr,
    pub(super) metrics: WireMetrics,
}

impl Connector {
    pub(super) async fn connect(self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let Self { identity, node, address, metrics } = &self;
        let (node, address) = (*node, *address);
        let connecting = async {
            let stream = TcpStream::connect(address).await;
            let stream = stream.map_err(|source| ConnectError::Tcp { node, address, source })?;
            // Frames are written in one go; waiting for more to send would only delay their ends.
            let _ = stream.set_nodelay(true);
            // Which name is asked for doesn't matter, and an address isn't even sent.
            let name = ServerName::from(address.ip());
            let connector = TlsConnector::from(identity.client_config(node)?);
            connector.connect(name, stream).await.map_err(|source| {
                let why = format_args!("connecting to node {node}: {source}").to_string();
                metrics.refusals.refuse(Reason::of_handshake(&source), address, &why);
                ConnectError::Tls { node, address, source }
            })
        };
        timeout(DEADLINE, connecting).await.unwrap_or(Err(ConnectError::Silent { node, address }))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.clone().connect();
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}
