use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use futures_util::future::join_all;

use crate::config::{self, Seed};
use crate::wire::{ResolveError, resolve};

/// Where others may be, by the configuration.
#[derive(Debug, Clone)]
pub(super) struct Seeds {
    seeds: Vec<Seed>,
    dns_server: Option<SocketAddr>,
}

/// What asking for the seeds' addresses gave.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) failed: Vec<ResolveError>,
}

impl Seeds {
    pub(super) fn new(config: &config::Peers) -> Self {
        Self { seeds: config.seeds.clone(), dns_server: config.dns_server() }
    }

    /// Those that need no name.
    pub(super) fn literal(&self) -> impl Iterator<Item = SocketAddr> {
        self.seeds.iter().filter_map(|seed| match seed {
            Seed::Address(address) => Some(*address),
            Seed::Name { .. } => None,
        })
    }

    /// All of them now: names are asked for at the same time, each for at most two seconds.
    pub(super) async fn find(self) -> Found {
        let names = self.seeds.iter().filter_map(|seed| match seed {
            Seed::Name { name, port } => Some(resolve(name, *port, self.dns_server)),
            Seed::Address(_) => None,
        });
        let mut found = Found { addresses: self.literal().collect(), failed: Vec::new() };
        for answer in join_all(names).await {
            match answer {
                Ok(addresses) => found.addresses.extend(addresses),
                Err(error) => found.failed.push(error),
            }
        }
        found.addresses.sort_unstable();
        found.addresses.dedup();
        found
    }
}

/// Whether an address is one of this node's own now.
pub(super) fn is_own(ip: IpAddr) -> bool {
    // Where the kernel lets anybody bind to any address (`ip_nonlocal_bind`), it seems so of all.
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The address that others reach this node at, by the routes to these: a seed on this very node says nothing of it.
/// `None`: there is no route at all.
pub(super) fn source_towards_any(places: impl Iterator<Item = SocketAddr>) -> Option<IpAddr> {
    let sources: Vec<IpAddr> = places.filter_map(|to| source_towards(to).ok()).collect();
    let ip = sources.iter().find(|ip| !ip.is_loopback()).or(sources.first())?;
    Some(ip.to_canonical())
}

/// The address that this node's packets to `to` come from. Sends nothing.
///
/// # Errors
/// When there is no route.
fn source_towards(to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_found_and_what_fails_is_told() {
        let config = "seeds = ['127.0.0.1:7', 'dns:localhost:9', 'dns:no-such-name.invalid:7441']";
        let config: config::Peers = toml::from_str(config).unwrap();
        let found = Seeds::new(&config).find().await;
        assert!(found.addresses.contains(&"127.0.0.1:7".parse().unwrap()), "{found:?}");
        assert!(found.addresses.iter().any(|address| address.ip().is_loopback() && address.port() == 9), "{found:?}");
        assert_eq!(found.failed.len(), 1, "{found:?}");
    }

    #[test]
    fn towards_itself_a_node_comes_from_itself() {
        let here = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(source_towards("127.0.0.1:7441".parse().unwrap()).unwrap(), here);
        assert_eq!(source_towards_any(["127.0.0.1:7441".parse().unwrap()].into_iter()), Some(here));
        assert_eq!(source_towards_any(std::iter::empty()), None);
        assert!(is_own(here));
        // One for documentation.
        assert!(!is_own(IpAddr::from([192, 0, 2, 1])));
    }
}
