use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::errno::Errno;
use socket2::SockRef;

/// Binds; where every address of IPv6 is asked for on a node without IPv6, every one of IPv4, which the log says. Any
/// other address has to be had as it is.
///
/// # Errors
/// What `bind` says.
pub fn or_v4<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
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
pub fn take_both(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
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
