//! Names to addresses: by the node's resolver, or by a DNS server of its own.

mod server;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use self::server::Refusal;

/// How long a name may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// More addresses than any node needs to find the others.
const MAX_ADDRESSES: usize = 4096;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Nobody answered in time.
    #[error("{name} was not resolved within {} s", DEADLINE.as_secs())]
    Silent {
        /// The name.
        name: String,
    },
    /// The node's resolver says no.
    #[error("this node's resolver doesn't resolve {name}; a cluster's own names need `dns_server` in [peers]")]
    System {
        /// The name.
        name: String,
        /// What it said.
        source: io::Error,
    },
    /// The DNS server can't be asked.
    #[error("the DNS server {server} can't be asked for {name}")]
    Unreachable {
        /// The name.
        name: String,
        /// `peers.dns_server`.
        server: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The DNS server says no.
    #[error("the DNS server {server} has no address for {name}: {answer}")]
    Refused {
        /// The name.
        name: String,
        /// `peers.dns_server`.
        server: SocketAddr,
        /// What it said.
        answer: String,
    },
}

/// Every address of a name, at a port: by the node's resolver, or by a DNS server, which wants the whole name
/// (`larder-peers.larder.svc.cluster.local`). Takes at most two seconds.
///
/// # Errors
/// When there is none.
pub async fn resolve(name: &str, port: u16, dns_server: Option<SocketAddr>) -> Result<Vec<SocketAddr>, ResolveError> {
    let looking = async {
        match dns_server {
            None => by_system(name, port).await,
            Some(server) => by_server(name, port, server).await,
        }
    };
    let silent = || Err(ResolveError::Silent { name: name.to_owned() });
    timeout(DEADLINE, looking).await.unwrap_or_else(|_| silent())
}

async fn by_system(name: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
    let found = tokio::net::lookup_host((name, port)).await;
    let found = found.map_err(|source| ResolveError::System { name: name.to_owned(), source })?;
    Ok(found.take(MAX_ADDRESSES).collect())
}

async fn by_server(name: &str, port: u16, server: SocketAddr) -> Result<Vec<SocketAddr>, ResolveError> {
    let (v4, v6) =
        tokio::join!(server::ask(server, name, simple_dns::TYPE::A), server::ask(server, name, simple_dns::TYPE::AAAA));
    let refused = |refusal| match refusal {
        Refusal::Io(source) => ResolveError::Unreachable { name: name.to_owned(), server, source },
        Refusal::Answer(answer) => ResolveError::Refused { name: name.to_owned(), server, answer },
    };
    // One family is enough: some servers err for the one that they don't have.
    let found = match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.extend(v6);
            v4
        }
        (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => found,
        (Err(refusal), _) | (_, Err(refusal)) => return Err(refused(refusal)),
    };
    if found.is_empty() {
        return Err(refused(Refusal::Answer("it knows the name, and no address of it".to_owned())));
    }
    Ok(found.into_iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(ip, port)).collect())
}

#[cfg(test)]
mod tests;
