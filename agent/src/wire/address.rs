use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::errno::Errno;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

/// Takes a port, where at most `backlog` connections wait to be accepted. `[::]` takes IPv4 too; where the node has no
/// IPv6, it is taken as `0.0.0.0`. Needs a runtime.
///
/// # Errors
/// When another process has it, or the address isn't this node's.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    or_v4(address, |address| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for old connections to time out.
        socket.set_reuseaddr(true)?;
        take_both(&socket, address)?;
        socket.bind(address)?;
        socket.listen(backlog)
    })
}

/// Binds; where every address of IPv6 is asked for on a node without IPv6, every one of IPv4, which the log says. Any
/// other address has to be had as it is.
///
/// # Errors
/// What `bind` says.
pub(super) fn or_v4<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind(address).or_else(|error| {
        let has_no_v6 =
            matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL));
        if !is_any_v6(address) || !has_no_v6 {
            return Err(error);
        }
        let instead = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        let bound = bind(instead)?;
        tracing::info!(%address, %instead, "this node has no IPv6");
        Ok(bound)
    })
}

/// Lets a socket that is about to be bound to every address of IPv6 take IPv4 too, whatever the node's `bindv6only` says.
///
/// # Errors
/// When the system refuses it.
pub(super) fn take_both(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    if is_any_v6(address) { SockRef::from(socket).set_only_v6(false) } else { Ok(()) }
}

fn is_any_v6(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

/// An address of IPv4 as such, also where a socket of both families gave it.
pub(super) const fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a kernel without IPv6 answers.
    fn bind(refusal: Errno) -> impl Fn(SocketAddr) -> io::Result<SocketAddr> {
        move |address| if address.is_ipv4() { Ok(address) } else { Err(refusal.into()) }
    }

    #[tokio::test]
    async fn both_families_on_one_port() {
        let listener = listen("[::]:0".parse().unwrap(), 1).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap());
        assert_eq!(canonical(listener.accept().await.unwrap().1).ip(), Ipv4Addr::LOCALHOST);
        assert_eq!(listen(([0, 0, 0, 0], port).into(), 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn without_ipv6() {
        let any = "[::]:7442".parse().unwrap();
        for refusal in [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL] {
            assert_eq!(or_v4(any, bind(refusal)).unwrap(), "0.0.0.0:7442".parse().unwrap());
            // What names an address means it.
            assert!(or_v4("[::1]:7442".parse().unwrap(), bind(refusal)).is_err());
        }
        // Somebody else has the port: to take half of it would hide that.
        assert!(or_v4(any, bind(Errno::EADDRINUSE)).is_err());
    }
}
