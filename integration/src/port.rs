//! Ports for servers that can't choose their own.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use tokio::net::TcpSocket;

// Below the range that the kernel hands to clients: a connection under way can't take a port between its choice and
// its use, and a client that tries a stopped server's port again and again can't end up connected to itself.
const FIRST: u16 = 12_000;
const COUNT: u16 = 18_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A loopback port that nothing listens on, and that no other fixture of this process is given.
pub fn free_port() -> Result<u16> {
    // Other test processes start elsewhere, also those that were started right after this one.
    let start = (std::process::id() % u32::from(COUNT) * 7919 % u32::from(COUNT)) as u16;
    (0..COUNT)
        .map(|_| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
        .find(|&port| is_free(port))
        .context("no free port on loopback")
}

/// Binds without listening: between a fork and its exec, a child of another test holds every socket of ours, and one
/// that listened would keep the port from whom it is given to.
fn is_free(port: u16) -> bool {
    let Ok(socket) = TcpSocket::new_v4() else { return false };
    socket.set_reuseaddr(true).is_ok() && socket.bind((Ipv4Addr::LOCALHOST, port).into()).is_ok()
}
