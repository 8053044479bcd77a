//! A name server that knows one name.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::net::UdpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Host;

const HEAD: usize = 12;
const A: [u8; 2] = [0, 1];

/// Answers with addresses for one name, at port 53 of a machine; everything else doesn't exist.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _running: DropGuard,
}

#[derive(Debug)]
struct Shared {
    // As it stands in a question.
    name: Vec<u8>,
    addresses: Mutex<Vec<Ipv4Addr>>,
    asked: AtomicUsize,
}

impl NameServer {
    /// One that answers for `name` with no address yet.
    pub async fn start_on(host: &Host, name: &str) -> Result<Self> {
        let address = SocketAddr::from((host.address(), 53));
        Self::start(host.namespace().inside(|| std::net::UdpSocket::bind(address))?, name)
    }

    /// The same at an address of this machine's loopback, also at port 53.
    pub async fn start_at(address: Ipv4Addr, name: &str) -> Result<Self> {
        Self::start(std::net::UdpSocket::bind((address, 53))?, name)
    }

    fn start(socket: std::net::UdpSocket, name: &str) -> Result<Self> {
        let address = socket.local_addr()?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        let labels = name.split('.').flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()));
        let name = labels.chain([0]).collect();
        let shared = Arc::new(Shared { name, addresses: Mutex::default(), asked: AtomicUsize::new(0) });
        let stop = CancellationToken::new();
        let (stopped, answering) = (stop.clone(), shared.clone());
        tokio::spawn(async move { stopped.run_until_cancelled(answer(socket, &answering)).await });
        Ok(Self { address, shared, _running: stop.drop_guard() })
    }

    /// From now on, the name has these addresses.
    pub fn set(&self, addresses: &[Ipv4Addr]) {
        *self.shared.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses.to_vec();
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often it was asked for the name's addresses.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }
}

async fn answer(socket: UdpSocket, shared: &Shared) -> std::io::Result<()> {
    let mut packet = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut packet).await?;
        if let Some(reply) = reply(&packet[..length], shared) {
            socket.send_to(&reply, from).await?;
        }
    }
}

/// The reply to a packet of one question.
fn reply(packet: &[u8], shared: &Shared) -> Option<Vec<u8>> {
    let end = HEAD + packet.get(HEAD..)?.iter().position(|&byte| byte == 0)? + 1;
    let (name, kind) = (&packet[HEAD..end], packet.get(end..end + 2)?);
    let question = packet.get(HEAD..end + 4)?;
    let is_known = name.eq_ignore_ascii_case(&shared.name);
    let addresses = match is_known && kind == A {
        true => {
            shared.asked.fetch_add(1, Ordering::Relaxed);
            shared.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
        false => Vec::new(),
    };
    let mut reply = packet[..2].to_vec();
    // A reply, with authority, of a server that asks others; there is no such name, or no error.
    reply.extend_from_slice(&[0x85, if is_known { 0x80 } else { 0x83 }]);
    for count in [1, addresses.len() as u16, 0, 0] {
        reply.extend_from_slice(&count.to_be_bytes());
    }
    reply.extend_from_slice(question);
    for address in addresses {
        // The name of the question; A, IN; for a second; four bytes.
        reply.extend_from_slice(&[0xc0, HEAD as u8, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}
