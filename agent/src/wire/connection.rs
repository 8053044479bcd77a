use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::Identity;
use super::channels::{FRAME, Owned};
use super::listen::DRAIN_TIMEOUT;
use crate::image::NodeId;

/// How often it is looked whether the caller's certificate is still good; a change of the authorities is looked at at
/// once.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Calls and streams at a time on one connection.
const MAX_STREAMS: u32 = 256;
/// What callers send is small, but for what they announce.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Of a stream that has so much to be sent, no message is taken: one waits at a time, and what it holds is known to have
/// gone when the next one is cut.
const SEND_BUFFER: usize = 16 << 10;
const MAX_HEADERS: u32 = 16 << 10;
/// A peer that answers no ping for so long is gone.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Who sent a request: in the extensions of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Which node, where its certificate says so. A certificate that somebody else issued may not.
    pub node: Option<NodeId>,
    /// From where.
    pub address: SocketAddr,
}

/// A connection of a member.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    /// What it has shown.
    chain: Vec<CertificateDer<'static>>,
    identity: Arc<Identity>,
    changes: watch::Receiver<u64>,
    tasks: TaskTracker,
}

impl Connection {
    /// A connection whose handshake has ended well.
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        identity: Arc<Identity>,
        tasks: TaskTracker,
    ) -> Self {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let caller = Caller { node: chain.first().and_then(Identity::named), address };
        let changes = identity.changes();
        Self { stream, caller, chain, identity, changes, tasks }
    }

    /// Serves requests until the caller leaves, `stop`, or its certificate isn't good any more.
    pub(super) async fn serve<S, B>(mut self, service: S, stop: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let caller = self.caller;
        let service = TowerToHyperService::new(service);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller);
            hyper::service::Service::call(&service, request)
        });
        let connection = http2::Builder::new(Owned(self.tasks))
            .timer(TokioTimer::new())
            .max_frame_size(FRAME)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(self.stream), service);
        let mut connection = pin!(connection);
        // An error is a caller that left; what was under way for it ends where it arose.
        tokio::select! {
            _ = &mut connection => return,
            () = stop.cancelled() => {}
            () = distrusted(&self.identity, &self.chain, &mut self.changes, LOOK_EVERY) => {
                tracing::info!(peer = %caller.address, node = ?caller.node, "its certificate has ended: no more calls on this connection");
            }
        }
        connection.as_mut().graceful_shutdown();
        let _ = timeout(DRAIN_TIMEOUT, connection).await;
    }
}

/// Returns when a certificate has ended, or its authority isn't trusted any more.
async fn distrusted(
    identity: &Identity,
    chain: &[CertificateDer<'static>],
    changes: &mut watch::Receiver<u64>,
    look_every: Duration,
) {
    loop {
        let _ = timeout(look_every, changes.changed()).await;
        if !identity.believes(chain) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;
    use time::OffsetDateTime;

    use super::*;
    use crate::wire::tests::{Cluster, leaf};

    #[tokio::test]
    async fn a_certificate_ends_while_its_connection_is_open() {
        let cluster = Cluster::new();
        let identity = cluster.identity("a");
        let ends = OffsetDateTime::now_utc() + Duration::from_secs(3);
        let (certificate, _) = leaf(&cluster.ca(), |params| params.not_after = ends);
        let chain = [CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        assert!(identity.believes(&chain));
        let mut changes = identity.changes();
        let ended = distrusted(&identity, &chain, &mut changes, Duration::from_millis(50));
        timeout(Duration::from_secs(10), ended).await.unwrap();
        assert!(OffsetDateTime::now_utc().unix_timestamp() >= ends.unix_timestamp(), "before its time");
    }
}
