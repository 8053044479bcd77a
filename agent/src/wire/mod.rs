//! What carries words between nodes, and keeps everybody else out.
//!
//! An [`Identity`] is who this node is: a number that it keeps, a certificate of the cluster's authority, and whom it
//! trusts. [`PeerListener`] takes connections that show such a certificate, and says of each whose it is ([`Caller`]);
//! [`Channels`] makes them, to the one node that is meant. [`Datagrams`] carries small messages sealed with a key that
//! only members can derive. What comes from outsiders is refused, counted by reason, and said in the log at most once a
//! second. [`Limiter`] holds streams to a rate, and [`resolve`] finds the seeds' addresses.
//!
//! Nothing in here knows what is said.

mod channels;
mod datagrams;
mod identity;
mod limit;
mod listen;
mod metrics;
mod resolve;

pub use channels::{Channels, Purpose};
pub use datagrams::Datagrams;
pub use identity::{Identity, IdentityError};
pub use limit::Limiter;
pub use listen::{BindError, Caller, PeerListener};
pub use metrics::WireMetrics;
pub use resolve::{ResolveError, resolve};
