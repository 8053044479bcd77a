//! The configuration: every key, its default, and its check.
//!
//! A [`Config`] that exists is sound: values that could not work are refused while they are read, with the file, the
//! line and the key. Every key can also be set by environment: `LARDER__MIRROR__LISTEN` is `listen` in `[mirror]`.

mod load;
mod sections;
mod units;

pub use load::{ConfigError, DEFAULT_FILE, commented_default};
pub use sections::{
    Admin, Cache, Config, Containerd, HostsTarget, Log, LogFormat, Metrics, Mirror, RegistryConfig, Tags,
    UpstreamConfig,
};
pub use units::{Bytes, Percent, Span, UpstreamUrl};
