//! Registries: every request that leaves this node for one, and everything that can go wrong on the way.
//!
//! A registry has a chain of upstreams ([`Upstreams::of`]): those that the configuration lists, or its own address. An
//! [`Upstream`] answers with an [`Answer`], whose [`Body`] never ends short without saying so, or with an
//! [`UpstreamError`], which says who failed, how, and whether asking another upstream makes sense. Tokens, redirects,
//! deadlines and the guard (what may be contacted at all) are dealt with in here: callers see answers. As whom it asks,
//! each request says by its [`Grant`].
//!
//! Each upstream has a breaker, which failures open and answers and probes close. It keeps nobody from asking: it is
//! what [`Chain::in_order`] and [`Chain::first`] go by, so that one that is down costs a pull once, and one that is slow
//! is raced by the next.
//!
//! The guard: names, redirects and token servers come from images and from registries, so from anybody. What the
//! configuration names by URL is contacted as it says; everything else by HTTPS alone, and never at an address of this
//! machine, its link, or its cloud's metadata service. It is applied to the addresses that are dialled.

mod address;
mod answer;
mod ask;
mod body;
mod breaker;
mod chains;
mod challenge;
mod connect;
mod error;
mod exchange;
mod grant;
mod health;
mod home;
mod keyring;
mod maker;
mod metrics;
mod one;
mod own;
mod places;
mod probe;
mod proxy;
mod quota;
mod record;
mod redirect;
mod tasks;
mod tls;
mod token;
mod told;
mod trust;
mod tunnel;
mod waits;

#[cfg(test)]
pub(crate) mod tests;

pub use answer::Answer;
pub use body::Body;
pub use chains::{Chain, Upstreams};
pub use error::{ErrorKind, Unreachable, UpstreamError};
pub use exchange::Part;
pub use grant::{Credentials, Grant, MAX_SECRET, OwnCredentials};
pub use keyring::{Credential, Found, Keyring, Lack};
pub use maker::SetupError;
pub use metrics::Metrics;
pub use one::Upstream;
pub use quota::Quota;
pub use record::{Down, LastError, State};
pub use tls::TlsError;
pub use trust::{Authorities, AuthoritySource, Unreadable};
