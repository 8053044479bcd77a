use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::aead::LessSafeKey;
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use super::metrics::Direction;
use super::seal::{MAX_PLAIN, MAX_SEALED, Opener, Sealer};
use super::{Identity, WireMetrics, address};

/// What the keys are for.
const PURPOSE: &[u8] = b"datagrams";

/// A UDP socket whose datagrams only members can read or write.
pub struct Datagrams {
    socket: UdpSocket,
    is_v6: bool,
    identity: Arc<Identity>,
    sealer: Sealer,
    state: Mutex<State>,
    metrics: WireMetrics,
}

struct State {
    /// Of which of the identity's sets the keys are.
    generation: Option<u64>,
    sealing: Option<Arc<LessSafeKey>>,
    clusters: Vec<[u8; 32]>,
    opener: Opener,
}

impl Datagrams {
    /// The most bytes that one message may have: 1,400 on the wire.
    pub const MAX_PLAIN: usize = MAX_PLAIN;

    /// Takes the port. Needs a runtime.
    ///
    /// # Errors
    /// When another process has it.
    pub fn bind(address: SocketAddr, identity: Arc<Identity>, metrics: WireMetrics) -> io::Result<Self> {
        let bind = |address: SocketAddr| {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), None)?;
            address::take_both(&socket, address)?;
            socket.bind(&address.into())?;
            Ok(socket)
        };
        let socket = UdpSocket::from_std(address::or_v4(address, bind)?.into())?;
        let is_v6 = socket.local_addr()?.is_ipv6();
        let state = State { generation: None, sealing: None, clusters: Vec::new(), opener: Opener::default() };
        Ok(Self { socket, is_v6, identity, sealer: Sealer::new(), state: Mutex::new(state), metrics })
    }

    /// The address of the socket.
    ///
    /// # Errors
    /// When the system doesn't know it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends a message, without any promise that it arrives.
    ///
    /// # Errors
    /// When it has more than [`Self::MAX_PLAIN`] bytes, or the system refuses it.
    pub async fn send(&self, to: SocketAddr, plain: &[u8]) -> io::Result<()> {
        if plain.len() > MAX_PLAIN {
            let why = format!("a message of {} bytes; at most {MAX_PLAIN} fit into a datagram", plain.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let unsealed = |_| io::Error::other("a datagram can't be sealed");
        let key = self.sealing().map_err(unsealed)?;
        let sealed = self.sealer.seal(&key, plain, SystemTime::now()).map_err(unsealed)?;
        self.socket.send_to(&sealed, self.reachable(to)).await?;
        self.metrics.datagram(Direction::Out, sealed.len());
        Ok(())
    }

    /// The next message of a member, and from where it came. What others send is counted and left out. Cancelling it
    /// loses nothing.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub async fn recv(&self) -> io::Result<(SocketAddr, Vec<u8>)> {
        // One byte more, so that what is too long doesn't pass for what is just long enough.
        let mut buffer = [0; MAX_SEALED + 1];
        loop {
            let (length, from) = match self.socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // Of something that was sent to a port where nobody is.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => {
                    continue;
                }
                Err(e) => return Err(e),
            };
            let from = address::canonical(from);
            let mut datagram = buffer[..length].to_vec();
            match self.open(&mut datagram) {
                Ok(()) => {
                    self.metrics.datagram(Direction::In, length);
                    return Ok((from, datagram));
                }
                Err(why) => self.metrics.refusals.refuse(why.reason(), from, &why),
            }
        }
    }

    fn open(&self, datagram: &mut Vec<u8>) -> Result<(), super::seal::NotOpened> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { clusters, opener, .. } = self.follow(&mut state);
        opener.open(clusters, datagram, SystemTime::now())
    }

    fn sealing(&self) -> Result<Arc<LessSafeKey>, aws_lc_rs::error::Unspecified> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.follow(&mut state);
        if let Some(key) = &state.sealing {
            return Ok(Arc::clone(key));
        }
        let first = state.clusters.first().ok_or(aws_lc_rs::error::Unspecified)?;
        let key = Arc::new(self.sealer.key(first)?);
        state.sealing = Some(Arc::clone(&key));
        Ok(key)
    }

    /// The cluster's keys as they are now.
    fn follow<'a>(&self, state: &'a mut State) -> &'a mut State {
        let generation = Some(self.identity.generation());
        if state.generation != generation {
            let clusters = self.identity.cluster_keys(PURPOSE);
            if state.clusters.first() != clusters.first() {
                state.sealing = None;
            }
            state.clusters = clusters;
            state.generation = generation;
        }
        state
    }

    /// As a socket of both families wants it.
    const fn reachable(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(ip) if self.is_v6 => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), to.port()),
            _ => to,
        }
    }
}

impl std::fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datagrams").field("socket", &self.socket).finish_non_exhaustive()
    }
}
