use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::health::Health;
use super::peers::Peers;
use super::units::{Bytes, Percent, Span};
use super::upstream::{RegistryConfig, UpstreamConfig};
use crate::image::{ImagePattern, Registry};

/// Everything that can be configured. [`Config::default`] is what an empty file means.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[mirror]`: the endpoint that containerd pulls from.
    pub mirror: Mirror,
    /// `[cache]`: the store on disk.
    pub cache: Cache,
    /// `[containerd]`: the runtime that we enter ourselves in.
    pub containerd: Containerd,
    /// `[tags]`: how long an answer about a tag holds.
    pub tags: Tags,
    /// `[private]`: what is remembered of who may pull what.
    pub private: Private,
    /// `[[registry]]`: upstreams in the place of, or before, a registry's own address.
    #[serde(rename = "registry")]
    pub registries: Vec<RegistryConfig>,
    /// `[peers]`: the other nodes.
    pub peers: Peers,
    /// `[health]`: how the images that run are checked.
    pub health: Health,
    /// `[credentials]`: the agent's own, for what it asks of registries without a caller.
    pub credentials: Credentials,
    /// `[admin]`: the command line's socket.
    pub admin: Admin,
    /// `[metrics]`: what Prometheus reads.
    pub metrics: Metrics,
    /// `[log]`: what is written to standard error.
    pub log: Log,
}

/// `[mirror]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirror {
    /// Where containerd reaches us. Loopback: the port hands out what the cache holds.
    pub listen: SocketAddr,
    /// Whether hosts.toml names us by `https://`, with a certificate of this node's own CA. The port speaks both.
    pub tls: bool,
    /// Every reply starts within this time. Before 2.3 containerd waits for ever, from then on 30 s.
    pub reply_deadline: Span,
    /// Blobs up to this size are whole and verified before their first byte goes out.
    pub verify_first: Bytes,
    /// To reach an upstream: name, TCP and TLS.
    pub connect_timeout: Span,
    /// From a request to the head of an upstream's answer.
    pub header_timeout: Span,
    /// An upstream that sends no byte for so long is left.
    pub stall_timeout: Span,
    /// A blob that has begun, and that no upstream goes on with, is tried again for so long after the last byte. `0`:
    /// each upstream is asked once.
    pub resume_within: Span,
}

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// The store's folder.
    pub dir: PathBuf,
    /// The most that the store holds; absent: bounded by `max_disk_percent` alone.
    pub max_bytes: Option<Bytes>,
    /// Above this use of its disk, by whomever, the store gives up what was used least recently.
    pub max_disk_percent: Percent,
    /// An image that nothing on this node uses any more is kept for so long after its last use.
    pub expire_unused: Span,
    /// Images that never expire, and are fetched at the start where the pattern is a name.
    pub keep: Vec<ImagePattern>,
    /// Images that are passed through: neither stored nor watched.
    pub ignore: Vec<ImagePattern>,
    /// On how many nodes every image that runs is to be whole, this one included. `0`: on those that run it alone.
    pub copies: u32,
    /// Bytes a second that are fetched in the background in all: what makes images whole, and copies.
    pub background_rate: Bytes,
    /// Bytes a second that are read to look for damage. `0`: only what is served is checked.
    pub scrub_rate: Bytes,
}

/// `[containerd]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Containerd {
    /// containerd's API.
    pub socket: PathBuf,
    /// The folder that containerd's `config_path` names.
    pub hosts_dir: PathBuf,
    /// containerd's own configuration, read by `larder doctor` only.
    pub config: PathBuf,
    /// The namespaces whose pulls come through us; the first is where the canary is pulled.
    pub namespaces: Vec<String>,
    /// For which registries hosts.toml is written. `_default` is all of them; an empty list writes nothing.
    pub registries: Vec<HostsTarget>,
    /// Whether the mirrors in the user's own hosts.toml files are upstreams of ours too, for every registry that has no
    /// upstreams in this configuration.
    pub adopt_mirrors: bool,
    /// A folder with templates that take the place of the built-in ones of the same name.
    pub templates: Option<PathBuf>,
    /// How often a canary pull proves that containerd comes to us; `0` turns it off.
    pub canary_interval: Span,
}

/// One entry of `containerd.registries`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostsTarget {
    /// `_default`: every registry that has no folder of its own, and every folder that exists.
    Default,
    /// One registry.
    Registry(Registry),
}

/// `[tags]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tags {
    /// An answer about a tag younger than this is given again without asking upstream. `0`: always ask.
    pub max_age: Span,
    /// What becomes of a tag that was known, and that its registry doesn't have any more.
    pub on_deleted: OnDeleted,
}

/// `tags.on_deleted`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeleted {
    /// It is given as it last was, to whoever could pull it before.
    #[default]
    Serve,
    /// It is gone.
    Deny,
}

/// `[private]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Private {
    /// For so long who could pull an image can pull it from here while its registry can't be asked. `0`: not at all.
    pub remember: Span,
}

/// `[credentials]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Credentials {
    /// Docker config files, read anew when they change.
    pub docker_config: Vec<PathBuf>,
    /// Where `docker-credential-…` programs are looked for before `PATH`.
    pub helpers_dir: Option<PathBuf>,
    /// kubelet's `--image-credential-provider-config`: a file, or a folder of them.
    pub kubelet_config: Option<PathBuf>,
    /// kubelet's `--image-credential-provider-bin-dir`. Absent: the folder in which `kubelet_config` lies.
    pub kubelet_bin_dir: Option<PathBuf>,
}

impl Credentials {
    /// Whether no place is named.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.docker_config.is_empty() && self.kubelet_config.is_none()
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// The socket of `larder status` and its like.
    pub socket: PathBuf,
    /// Where the status page is served; loopback alone. `None`: nowhere.
    pub page: Option<SocketAddr>,
    /// A file for node-exporter's textfile collector, with what `/metrics` says. `None`: none is written.
    pub textfile: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Serves `/metrics`, `/healthz`, `/readyz` and nothing else.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged, in tracing's filter syntax: `info`, `larder=debug`.
    pub level: String,
    /// How it is written.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7439)),
            tls: true,
            reply_deadline: Span::secs(20),
            verify_first: Bytes(4 << 20),
            connect_timeout: Span::secs(3),
            header_timeout: Span::secs(10),
            stall_timeout: Span::secs(10),
            resume_within: Span::secs(30),
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        // 75: below the 85 at which kubelet starts to delete images.
        const MAX_DISK_PERCENT: Percent = match Percent::new(75) {
            Some(percent) => percent,
            None => panic!("75 is a percentage"),
        };
        Self {
            dir: "/var/lib/larder".into(),
            max_bytes: None,
            max_disk_percent: MAX_DISK_PERCENT,
            expire_unused: Span::secs(30 * 24 * 3600),
            keep: Vec::new(),
            ignore: Vec::new(),
            copies: 0,
            background_rate: Bytes(20 << 20),
            scrub_rate: Bytes(4 << 20),
        }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            socket: "/run/containerd/containerd.sock".into(),
            hosts_dir: "/etc/containerd/certs.d".into(),
            config: "/etc/containerd/config.toml".into(),
            namespaces: vec!["k8s.io".to_owned()],
            registries: vec![HostsTarget::Default],
            adopt_mirrors: true,
            templates: None,
            canary_interval: Span::secs(3600),
        }
    }
}

impl Default for Tags {
    fn default() -> Self {
        Self { max_age: Span::secs(0), on_deleted: OnDeleted::default() }
    }
}

impl Default for Private {
    fn default() -> Self {
        Self { remember: Span::secs(30 * 24 * 3600) }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: "/run/larder/larder.sock".into(), page: None, textfile: None }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7442)) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

impl Containerd {
    /// Whether mirrors are taken over: not where hosts.toml is none of our business.
    #[must_use]
    pub const fn adopts(&self) -> bool {
        self.adopt_mirrors && !self.registries.is_empty()
    }
}

impl HostsTarget {
    /// The name of the folder below `hosts_dir`.
    #[must_use]
    pub fn folder(&self) -> &str {
        match self {
            Self::Default => "_default",
            Self::Registry(registry) => registry.as_str(),
        }
    }
}

impl<'de> Deserialize<'de> for HostsTarget {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "_default" {
            return Ok(Self::Default);
        }
        text.parse().map(Self::Registry).map_err(|e| serde::de::Error::custom(format!("{text:?}: {e}, or _default")))
    }
}

impl Config {
    /// The upstreams configured for a registry; `None` where its own address serves.
    #[must_use]
    pub fn upstreams_of(&self, registry: &Registry) -> Option<&[UpstreamConfig]> {
        let entry = self.registries.iter().find(|r| r.name == *registry)?;
        (!entry.upstreams.is_empty()).then_some(entry.upstreams.as_slice())
    }
}
