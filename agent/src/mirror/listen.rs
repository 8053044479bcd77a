use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
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
use super::unanswered::{Expected, Unanswered};
use super::{Mirror, MirrorMetrics};

/// The first byte of a TLS record that carries a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// To say the first byte, and to finish the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// To send the head of a request; also how long a connection may idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// More connections at a time than any node's containerd opens.
const MAX_CONNECTIONS: usize = 1024;
/// How long a connection that was just let in may take to ask for something when the agent ends. Some never do: Go opens
/// one for a request that another one then takes.
const FIRST_REQUEST: Duration = Duration::from_millis(150);
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
    unanswered: Unanswered,
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
        Self::at(address, || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // A restart must not wait for old connections to time out.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(1024)
        })
    }

    /// The port as another process had it, with all who wait in its queue.
    ///
    /// # Errors
    /// When it isn't at this address, or can't be used.
    pub fn inherit(door: std::net::TcpListener, address: SocketAddr) -> Result<Self, BindError> {
        Self::at(address, || {
            if door.local_addr()? != address {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the door that was handed over is elsewhere"));
            }
            door.set_nonblocking(true)?;
            TcpListener::from_std(door)
        })
    }

    fn at(address: SocketAddr, listen: impl FnOnce() -> io::Result<TcpListener>) -> Result<Self, BindError> {
        let listener = listen().map_err(|source| BindError { address, source })?;
        Ok(Self { listener, address, unanswered: Unanswered::default() })
    }

    /// The same port, for another process: as long as one of the two is open, nobody is refused, and nobody who waits in
    /// the queue is lost.
    ///
    /// # Errors
    /// When the process has too many files open.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Who was let in and has no answer yet.
    #[must_use]
    pub fn unanswered(&self) -> Unanswered {
        self.unanswered.clone()
    }

    #[cfg(test)]
    pub(super) fn bound(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Serves until `stop`, then lets replies under way end, for twenty seconds at most. Nobody is let in meanwhile.
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
            let expected = self.unanswered.expect();
            connections.spawn(async move {
                let open = Open::count(mirror.metrics());
                connection(stream, mirror, acceptor, draining, expected).await;
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

async fn connection(
    stream: TcpStream,
    mirror: Arc<Mirror>,
    acceptor: TlsAcceptor,
    draining: CancellationToken,
    expected: Expected,
) {
    // Replies are written in one go; waiting for more to send would only delay their ends.
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let mut first = [0];
    let peeked = tokio::select! {
        peeked = timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)) => peeked,
        () = is_late(&draining) => return,
    };
    match peeked {
        Ok(Ok(1)) => {}
        Ok(Ok(_)) => return,
        _ => {
            mirror.metrics().handshakes_failed.inc();
            return;
        }
    }
    if first[0] != TLS_HANDSHAKE {
        return http(stream, mirror, Scheme::Plain, local, draining, expected).await;
    }
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => http(stream, mirror, Scheme::Tls, local, draining, expected).await,
        Ok(Err(e)) => {
            mirror.metrics().handshakes_failed.inc();
            tracing::debug!(error = %e, "a TLS handshake failed");
        }
        Err(_) => drop(mirror.metrics().handshakes_failed.inc()),
    }
}

/// The end has come, and whoever was just let in has had the time to say something.
async fn is_late(draining: &CancellationToken) {
    draining.cancelled().await;
    tokio::time::sleep(FIRST_REQUEST).await;
}

async fn http<S>(
    stream: S,
    mirror: Arc<Mirror>,
    scheme: Scheme,
    local: SocketAddr,
    draining: CancellationToken,
    expected: Expected,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let first = expected.first();
    let service = service_fn(move |request: Request<Incoming>| {
        let (mirror, asked) = (Arc::clone(&mirror), expected.begin());
        async move {
            let response = mirror.answer(request, scheme, local).await;
            drop(asked);
            Ok::<Response<Body>, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // An error is a caller that left, or a reply that we ended short; either is known where it arose. Whoever was just let
    // in is heard first: a new connection that closes without an answer is an error to Go, which asks again only on one
    // that it used before.
    let ending = async {
        draining.cancelled().await;
        let _ = timeout(FIRST_REQUEST, first.cancelled()).await;
    };
    tokio::select! {
        _ = &mut connection => return,
        () = ending => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
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
