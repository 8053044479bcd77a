//! The door for containerd: the pull side of the OCI distribution specification, over HTTP/1.1, plain and TLS on one
//! port.
//!
//! A request is parsed strictly ([`request`]), answered by [`crate::pull`], and turned into what its caller understands
//! ([`reply`]): which status makes containerd go on to its next host depends on its version. Where a registry wants to
//! know who asks, so does the mirror, with a token endpoint of its own ([`token`]). Nothing here opens a file or asks an
//! upstream.

mod bequest;
mod caller;
mod identity;
mod listen;
mod metrics;
mod passes;
mod range;
mod reply;
mod request;
mod serve;
mod token;
mod unanswered;

#[cfg(test)]
mod tests;

pub use bequest::MOST_LEFT;
pub use identity::{Identity, IdentityError};
pub use listen::{BindError, Listener};
pub use metrics::MirrorMetrics;
pub use serve::Mirror;
pub use unanswered::Unanswered;
