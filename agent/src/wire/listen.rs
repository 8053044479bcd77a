use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::channels::FRAME;
use super::connection::Connection;
use super::metrics::Direction;
use super::refusal::Reason;
use super::{Identity, WireMetrics, address};

/// From a connection to the end of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of a connection that the kernel takes before it can send them: a frame of content.
const UNSENT: u32 = FRAME;
/// More handshakes at a time than these cores would finish in their time. The next ones wait in the kernel.
const MAX_HANDSHAKES: usize = 512;
/// Of these from one address: an outsider can't hold them all.
const MAX_HANDSHAKES_OF_ONE: usize = 128;
/// More members at a time than the owner of a digest is asked by in a cluster of thousands.
const MAX_CONNECTIONS: usize = 8192;
const BACKLOG: u32 = 4096;
/// How long calls under way may go on when the agent ends.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the port for peers can't be had.
#[derive(Debug, thiserror::Error)]
#[error("no port for peers at {address}: {source}; is another process on it? `listen` in [peers] names another one")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// The port for peers.
#[derive(Debug)]
pub struct PeerListener {
    listener: TcpListener,
}

/// How many handshakes are under way from each address.
#[derive(Debug, Clone, Default)]
struct Knocking(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them.
struct Knock {
    all: Knocking,
    ip: IpAddr,
}

impl PeerListener {
    /// Takes the port. Needs a runtime.
    ///
    /// # Errors
    /// When another process has it, or the address isn't this node's.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let listener = address::listen(address, BACKLOG).map_err(|source| BindError { address, source })?;
        Ok(Self { listener })
    }

    /// The address that it has.
    ///
    /// # Errors
    /// When the system doesn't know it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves members over HTTP/2 until `stop`, then lets calls under way end for five seconds. Each request has a
    /// [`super::Caller`] in its extensions.
    pub async fn serve<S, B>(self, service: S, identity: Arc<Identity>, metrics: WireMetrics, stop: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (connections, knocking) = (TaskTracker::new(), Knocking::default());
        while let Some((stream, from)) = stop.run_until_cancelled(self.accept()).await {
            let Some(knock) = knocking.knock(from.ip()) else {
                metrics.refusals.refuse(Reason::Busy, from, &"too many handshakes under way from there");
                continue;
            };
            let Some(Ok(handshake)) = stop.run_until_cancelled(Arc::clone(&handshakes).acquire_owned()).await else {
                break;
            };
            let (service, identity, metrics) = (service.clone(), Arc::clone(&identity), metrics.clone());
            let (places, stop, tasks) = (Arc::clone(&places), stop.clone(), connections.clone());
            connections.spawn(async move {
                let Some(stream) = handshake_with(stream, from, &identity, &metrics).await else { return };
                drop((handshake, knock));
                let Ok(_place) = places.try_acquire_owned() else {
                    metrics.refusals.refuse(Reason::Busy, from, &"too many connections of members");
                    return;
                };
                let _open = metrics.open(Direction::In);
                Connection::new(stream, from, identity, tasks).serve(service, stop).await;
            });
        }
        drop(self.listener);
        connections.close();
        if timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::debug!(open = connections.len(), "peers still read from here; they are cut off");
        }
    }

    /// The next connection.
    async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => return (stream, address::canonical(from)),
                Err(e) => {
                    // Out of file descriptors, or the connection is gone already: others may still be served.
                    tracing::warn!(error = %e, "a connection of a peer was not accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// `None` for who isn't let in.
async fn handshake_with(
    stream: TcpStream,
    from: SocketAddr,
    identity: &Identity,
    metrics: &WireMetrics,
) -> Option<TlsStream<TcpStream>> {
    // Frames are written in one go; waiting for more to send would only delay their ends.
    let _ = stream.set_nodelay(true);
    // The kernel takes megabytes otherwise, and what is said on another stream of the connection waits behind them: for
    // most of a second over a link of 100 Mbit/s, after which a peer is taken for dead.
    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
    let acceptor = TlsAcceptor::from(identity.server_config());
    let (reason, why) = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => (Reason::of_handshake(&error), error.to_string()),
        Err(_) => (Reason::Silent, format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())),
    };
    metrics.refusals.refuse(reason, from, &why);
    None
}

impl Knocking {
    /// `None` when there are enough from there.
    fn knock(&self, ip: IpAddr) -> Option<Knock> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(ip).or_default();
        (*count < MAX_HANDSHAKES_OF_ONE).then(|| {
            *count += 1;
            Knock { all: self.clone(), ip }
        })
    }
}

impl Drop for Knock {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use tokio::net::TcpSocket;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::wire::tests::Cluster;

    #[tokio::test]
    async fn what_is_said_does_not_wait_behind_what_the_kernel_holds() {
        let cluster = Cluster::new();
        let (here, there) = (cluster.identity("a"), cluster.identity("b"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connector = TlsConnector::from(there.client_config(here.node()).unwrap());
        let client = TcpStream::connect(address).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let metrics = WireMetrics::default();
        let (server, _client) = tokio::join!(
            handshake_with(stream, from, &here, &metrics),
            connector.connect(ServerName::from(address.ip()), client)
        );
        let server = server.unwrap();
        let socket = SockRef::from(server.get_ref().0);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT);
        assert!(socket.tcp_nodelay().unwrap());
    }

    #[tokio::test]
    async fn who_says_nothing_keeps_nobody_else_out() {
        let cluster = Cluster::new();
        let (node, member) = (cluster.node("a"), cluster.identity("b"));
        let mut silent = Vec::new();
        for _ in 0..=MAX_HANDSHAKES_OF_ONE {
            silent.push(TcpStream::connect(node.address).await.unwrap());
        }
        node.refused(Reason::Busy, 1).await;
        let elsewhere = TcpSocket::new_v4().unwrap();
        elsewhere.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let stream = elsewhere.connect(node.address).await.unwrap();
        let connector = TlsConnector::from(member.client_config(node.identity.node()).unwrap());
        connector.connect(ServerName::from(node.address.ip()), stream).await.unwrap();
        // Once they have gone, or their time is over, their address is let in again.
        drop(silent);
        let again = cluster.node("c");
        while again.ask(&node).await.is_err() {}
    }

    #[test]
    fn one_address_has_its_share() {
        let (knocking, ip) = (Knocking::default(), IpAddr::from([10, 0, 0, 1]));
        let mut knocks: Vec<_> = (0..MAX_HANDSHAKES_OF_ONE).map(|_| knocking.knock(ip).unwrap()).collect();
        assert!(knocking.knock(ip).is_none());
        assert!(knocking.knock(IpAddr::from([10, 0, 0, 2])).is_some());
        knocks.pop();
        assert!(knocking.knock(ip).is_some());
        knocks.clear();
        assert!(knocking.0.lock().unwrap().is_empty());
    }
}
