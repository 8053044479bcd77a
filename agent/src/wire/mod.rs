//! What carries words between nodes, and keeps everybody else out.
//!
//! An [`Identity`] is who this node is: a number that it keeps, a certificate of the cluster's authority, and whom it
//! trusts. [`PeerListener`] takes connections that show such a certificate, and says of each whose it is ([`Caller`]);
//! [`Channels`] makes them, to the one node that is meant. [`Datagrams`] carries small messages sealed with a key that
//! only members can derive. What comes from outsiders is refused, counted by reason, and said in the log at most once a
//! second. [`Limiter`] holds streams to a rate, and [`resolve`] finds the seeds' addresses.
//!
//! Nothing in here knows what is said.

mod address;
mod channels;
mod connect;
mod connection;
mod datagrams;
mod identity;
mod limit;
mod listen;
mod metrics;
mod refusal;
mod replay;
mod resolve;
mod seal;

#[cfg(test)]
pub(crate) mod tests;

pub use address::listen;
pub use channels::{Channels, Purpose};
pub use connection::Caller;
pub use datagrams::Datagrams;
pub use identity::{CaError, ClusterCa, Identity, IdentityError};
pub use limit::Limiter;
pub use listen::{BindError, PeerListener};
pub use metrics::WireMetrics;
pub use resolve::{ResolveError, resolve};
