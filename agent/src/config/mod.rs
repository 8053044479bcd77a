//! The configuration: every key, its default, and its check.
//!
//! A [`Config`] that exists is sound: values that could not work are refused while they are read, with the file, the
//! line and the key. Every key can also be set by environment: `LARDER__MIRROR__LISTEN` is `listen` in `[mirror]`.

mod health;
mod load;
mod peers;
mod proxy;
mod reach;
mod sections;
mod units;
mod upstream;

pub use health::{Budget, Health, Method};
pub use load::{ConfigError, DEFAULT_FILE, commented_default};
pub use peers::{Peers, Seed};
pub use proxy::ProxyUrl;
pub use reach::reachable;
pub use sections::{
    Admin, Cache, Config, Containerd, Credentials, HostsTarget, Log, LogFormat, Metrics, Mirror, OnDeleted, Private,
    Tags,
};
pub use units::{Bytes, Percent, Span, UpstreamUrl};
pub use upstream::{Mirrors, Outage, ProxyChoice, RegistryConfig, UpstreamConfig};
