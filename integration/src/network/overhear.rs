//! What arrives at a host, read by somebody who isn't meant to.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Host;

const UDP: u8 = 17;
const UDP_HEAD: usize = 8;

impl Host {
    /// The next datagrams that arrive at a port of it, which has them too. Fails when none comes for ten seconds.
    pub async fn overhear(&self, port: u16, count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
        let (namespace, address) = (self.namespace().clone(), self.address());
        let listen = move || {
            let protocol = SockProtocol::EthIp;
            let tap = namespace
                .inside(|| Ok(socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?))?;
            setsockopt(&tap, ReceiveTimeout, &TimeVal::seconds(10))?;
            let (mut heard, mut packet) = (Vec::new(), [0; 2048]);
            while heard.len() < count {
                let length = recv(tap.as_raw_fd(), &mut packet, MsgFlags::empty())?;
                heard.extend(payload(&packet[..length], address, port).map(<[u8]>::to_vec));
            }
            Ok(heard)
        };
        Ok(tokio::task::spawn_blocking(listen).await?.map_err(|error: io::Error| error)?)
    }

    /// Sends a datagram from any port of it.
    pub fn send_datagram(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let address = self.address();
        let socket = self.namespace().inside(|| UdpSocket::bind((address, 0)))?;
        socket.send_to(datagram, to).map(drop)
    }
}

/// Of an IPv4 packet, if it is a datagram for there.
fn payload(packet: &[u8], address: Ipv4Addr, port: u16) -> Option<&[u8]> {
    let head = usize::from(packet.first()? & 0x0f) * 4;
    let is_ours = packet.get(9) == Some(&UDP) && packet.get(16..20)? == address.octets();
    let datagram = packet.get(head..).filter(|_| is_ours)?;
    let is_for_port = datagram.get(2..4)? == port.to_be_bytes();
    datagram.get(UDP_HEAD..).filter(|_| is_for_port)
}
