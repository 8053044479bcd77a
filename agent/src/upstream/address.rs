use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds answer questions about a machine and hand out its credentials, beyond link-local addresses.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// What kind of address it is, if it is one that only the configuration may name. Private networks are none: that is
/// where companies have their registries.
pub(super) fn refused(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(v4) => refused_v4(v4),
        IpAddr::V6(v6) => refused_v6(v6),
    }
}

fn refused_v4(ip: Ipv4Addr) -> Option<&'static str> {
    if ip.is_loopback() {
        Some("the loopback address")
    } else if ip.octets()[0] == 0 {
        Some("the unspecified address")
    } else if ip.is_link_local() {
        Some("the link-local address")
    } else if ip.is_multicast() {
        Some("the multicast address")
    } else if ip.is_broadcast() {
        Some("the broadcast address")
    } else if METADATA_V4.contains(&ip) {
        Some("the metadata service's address")
    } else {
        None
    }
}

fn refused_v6(ip: Ipv6Addr) -> Option<&'static str> {
    if ip.is_loopback() {
        Some("the loopback address")
    } else if ip.is_unspecified() {
        Some("the unspecified address")
    } else if ip.is_unicast_link_local() {
        Some("the link-local address")
    } else if ip.is_multicast() {
        Some("the multicast address")
    } else if METADATA_V6.contains(&ip) {
        Some("the metadata service's address")
    } else {
        embedded(ip).and_then(refused_v4)
    }
}

/// The IPv4 address that a packet to this address may end at.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let join = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match ip.segments() {
        // Mapped (::ffff:a.b.c.d), compatible (::a.b.c.d), translated (::ffff:0:a.b.c.d).
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => join(high, low),
        // NAT64, the well-known prefix and the one for local use.
        [0x64, 0xff9b, 0 | 1, _, _, _, high, low] => join(high, low),
        // 6to4.
        [0x2002, high, low, ..] => join(high, low),
        // Teredo has the address with every bit turned.
        [0x2001, 0, .., high, low] => join(!high, !low),
        // ISATAP, below any prefix.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => join(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_refused(text: &str) -> bool {
        refused(text.parse().unwrap()).is_some()
    }

    #[test]
    fn this_machine_its_link_and_its_cloud() {
        for ip in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "::1",
            "::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::127.0.0.1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001:0:1:2:3:4:80ff:fffe",
            "2001:db8::5efe:127.0.0.1",
        ] {
            assert!(is_refused(ip), "{ip}");
        }
    }

    #[test]
    fn the_world_and_private_networks() {
        for ip in [
            "1.1.1.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "128.0.0.1",
            "2606:4700::1111",
            "fd00::1",
            "fd00:ec2::253",
            "64:ff9b::101:101",
            "::ffff:10.0.0.1",
            "2002:a00:1::",
        ] {
            assert!(!is_refused(ip), "{ip}");
        }
    }

    proptest! {
        #[test]
        fn no_way_of_writing_it_in_ipv6_opens_an_ipv4_address(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            if refused(v4.into()).is_some() {
                for v6 in [
                    v4.to_ipv6_mapped(),
                    v4.to_ipv6_compatible(),
                    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                    Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                ] {
                    prop_assert!(refused(v6.into()).is_some(), "{}", v6);
                }
            }
        }
    }
}
