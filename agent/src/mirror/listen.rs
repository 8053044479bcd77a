use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reply::Body;
use super::{Mirror, MirrorMetrics};

/// The first byte of a TLS record that carries a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// To say the first byte, and to finish the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// To send the head of a request; also how long a connection may idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// More connections at a time than any node's containerd opens.
const MAX_CONNECTIONS: usize = 1024;
/// How long replies under way may go on when the agent ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the mirror's port can't be had.
#[derive(Debug, thiserror::Error)]
#[error("the mirror can't listen on {address}: {source}; is another process on that port? `larder doctor` says which")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// The mirror's port.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

/// By which of the port's two protocols a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Plain,
    Tls,
}

impl Listener {
    /// Takes the port.
    ///
    /// # Errors
    /// When another process has it, or the address isn't this node's.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let listen = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // A restart must not wait for old connections to time out.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(1024)
        };
        let listener = listen().map_err(|source| BindError { address, source })?;
        Ok(Self { listener, address })
    }

    #[cfg(test)]
    pub(super) fn bound(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Serves until `stop`, then lets replies under way end.
    pub async fn serve(self, mirror: Arc<Mirror>, tls: Arc<ServerConfig>, stop: CancellationToken) {
        let acceptor = TlsAcceptor::from(tls);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        let draining = CancellationToken::new();
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of file descriptors, or the connection is gone already: others may still be served.
                    tracing::warn!(address = %self.address, error = %e, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                mirror.metrics().refused.inc();
                continue;
            };
            let (mirror, acceptor, draining) = (Arc::clone(&mirror), acceptor.clone(), draining.clone());
            connections.spawn(async move {
                let open = Open::count(mirror.metrics());
                connection(stream, mirror, acceptor, draining).await;
                drop((open, place));
            });
        }
        drop(self.listener);
        draining.cancel();
        connections.close();
        if timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::warn!(open = connections.len(), "replies are still under way; they are cut off");
        }
    }
}

async fn connection(stream: TcpStream, mirror: Arc<Mirror>, acceptor: TlsAcceptor, draining: CancellationToken) {
    // Replies are written in one go; waiting for more to send would only delay their ends.
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let mut first = [0];
    match timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        Ok(Ok(_)) => return,
        _ => {
            mirror.metrics().handshakes_failed.inc();
            return;
        }
    }
    if first[0] != TLS_HANDSHAKE {
        return http(stream, mirror, Scheme::Plain, local, draining).await;
    }
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => http(stream, mirror, Scheme::Tls, local, draining).await,
        Ok(Err(e)) => {
            mirror.metrics().handshakes_failed.inc();
            tracing::debug!(error = %e, "a TLS handshake failed");
        }
        Err(_) => drop(mirror.metrics().handshakes_failed.inc()),
    }
}

async fn http<S>(stream: S, mirror: Arc<Mirror>, scheme: Scheme, local: SocketAddr, draining: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| answer(Arc::clone(&mirror), request, scheme, local));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // An error is a caller that left, or a reply that we ended short; either is known where it arose.
    tokio::select! {
        _ = &mut connection => return,
        () = draining.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(
    mirror: Arc<Mirror>,
    request: Request<Incoming>,
    scheme: Scheme,
    local: SocketAddr,
) -> Result<Response<Body>, Infallible> {
    Ok(mirror.answer(request, scheme, local).await)
}

/// One open connection, in the gauge.
struct Open(MirrorMetrics);

impl Open {
    fn count(metrics: &MirrorMetrics) -> Self {
        metrics.connections.inc();
        Self(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
