use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a client on this node reaches who listens at `listen`: for every address, the loopback address of its family.
#[must_use]
pub const fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_reached_by_loopback() {
        for (listen, address) in [
            ("127.0.0.1:7439", "127.0.0.1:7439"),
            ("0.0.0.0:7439", "127.0.0.1:7439"),
            ("[::]:7439", "[::1]:7439"),
            ("[fd00::1]:80", "[fd00::1]:80"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), address.parse().unwrap());
        }
    }
}
