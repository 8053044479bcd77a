use std::io;
use std::net::{Ipv4Addr, SocketAddr};

/// Binds; where every address of IPv6 is asked for on a node without IPv6, every one of IPv4.
pub(super) fn or_v4<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let is_any_v6 = address.is_ipv6() && address.ip().is_unspecified();
    bind(address).or_else(|error| {
        let has_no_v6 = matches!(
            error.raw_os_error().map(nix::errno::Errno::from_raw),
            Some(nix::errno::Errno::EAFNOSUPPORT | nix::errno::Errno::EADDRNOTAVAIL)
        );
        if is_any_v6 && has_no_v6 {
            return bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())));
        }
        Err(error)
    })
}

/// An address of IPv4 as such, also where a socket of both families gave it.
pub(super) const fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
