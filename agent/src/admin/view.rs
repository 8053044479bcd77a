//! What the admin socket says, as JSON; the command line prints it.

pub mod images;
pub mod words;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::stock::Goes;
use crate::config::{Config, HostsTarget};
use crate::containerd::canary;
use crate::containerd::hosts::{self, Applied, AppliedFolder, HostsError};
use crate::image::{Digest, Registry};
use crate::pull::UnderWay;

/// `GET /v1/status`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Larder's version.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// Since it started.
    pub uptime_seconds: u64,
    /// Its resident memory.
    pub resident_bytes: u64,
    /// The endpoint that containerd pulls from.
    pub mirror: Mirror,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// The newest proof that containerd comes to us; absent before the first.
    pub canary: Option<canary::Report>,
    /// The folders of containerd's hosts, as they were last written; absent where none are.
    pub hosts: Option<Vec<HostsFolder>>,
    /// The upstreams that were taken over from the user's own hosts.toml files.
    #[serde(default)]
    pub adopted: Vec<Adopted>,
    /// The store.
    pub cache: Cache,
    /// Blobs that are arriving.
    pub transfers: Vec<UnderWay>,
    /// Upstreams that are configured or were asked lately.
    pub upstreams: Vec<Upstream>,
}

/// The mirror's port.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mirror {
    /// Address and port.
    pub listen: SocketAddr,
    /// Whether hosts.toml names it by `https://`.
    pub tls: bool,
    /// Requests for images since the start, the canary's left out.
    pub requests: u64,
}

/// One folder of containerd's hosts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostsFolder {
    /// Its name: a registry, or `_default`.
    pub name: String,
    /// Whether our entry stands in it.
    pub applied: bool,
    /// What is wrong, or worth knowing.
    pub remarks: Vec<String>,
}

/// What was taken over from one of the user's own files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// A registry, or `_default`.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// The URLs, in the order in which they are asked.
    pub upstreams: Vec<String>,
    /// They are all: the registry's own address isn't asked.
    pub is_all: bool,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// The configuration lists upstreams for this registry: these are not asked.
    pub is_overruled: bool,
}

/// The store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cache {
    /// Its folder.
    pub dir: PathBuf,
    /// Whether it takes blobs at the moment.
    pub writable: bool,
    /// How many blobs it holds.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of blobs that are arriving, or arrived in part.
    pub arriving_bytes: u64,
    /// The bound that is configured.
    pub max_bytes: Option<u64>,
    /// The bound that is configured.
    pub max_disk_percent: u8,
    /// The disk, in bytes.
    pub disk_size_bytes: Option<u64>,
    /// What is used of it, by whomever, in bytes.
    pub disk_used_bytes: Option<u64>,
}

/// How things last went with one upstream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Upstream {
    /// Whose content it serves.
    pub registry: Registry,
    /// Where it is.
    pub url: String,
    /// When it last answered.
    pub last_success: Option<Timestamp>,
    /// When it last failed, and how.
    pub last_error: Option<LastError>,
    /// Since when others are asked before it, and why; absent while it is well.
    pub down: Option<Down>,
    /// It said "too many requests", and is left alone until then.
    pub rests_until: Option<Timestamp>,
    /// What it last said of its quota.
    pub quota: Option<Quota>,
}

/// An open breaker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Down {
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub reason: String,
}

/// What is left of a registry's quota on this node, in pulls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Quota {
    /// In all.
    pub limit: u64,
    /// Left of it.
    pub remaining: u64,
}

/// The last thing that went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastError {
    /// When.
    pub at: Timestamp,
    /// What.
    pub text: String,
}

/// One line of `GET /v1/cache`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// The blob.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// As its registry gave it.
    pub media_type: Option<String>,
    /// When it was last used, in seconds since 1970.
    pub last_used: u64,
    /// Which repositories it is known in.
    pub repositories: Vec<String>,
}

/// One line of `POST /v1/cache/verify`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checked {
    /// The blob.
    pub digest: Digest,
    /// Bytes read for it.
    pub bytes: u64,
    /// What is wrong with it.
    pub wrong: Option<String>,
}

/// `POST /v1/cache/gc`, with `?dry_run` for what would go
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Collected {
    /// How many blobs went.
    pub blobs: u64,
    /// Bytes that were freed.
    pub bytes: u64,
    /// Bytes above the low mark for which nothing may go.
    #[serde(default)]
    pub left: u64,
    /// What went, in this order.
    #[serde(default)]
    pub goes: Vec<Goes>,
}

/// An error of any call; of one that is answered line by line, also as the last line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    /// For people.
    pub error: String,
}

impl Upstream {
    /// How things stand with an upstream of a registry.
    #[must_use]
    pub fn of(registry: &Registry, upstream: &crate::upstream::Upstream) -> Self {
        let state = upstream.state();
        Self {
            registry: registry.clone(),
            url: upstream.url().to_string(),
            last_success: state.last_success,
            last_error: state.last_error.map(|e| LastError { at: e.at, text: e.text }),
            down: state.down.map(|down| Down { since: down.since, reason: down.reason }),
            rests_until: state.rests_until,
            quota: state.quota.map(|quota| Quota { limit: quota.limit, remaining: quota.remaining }),
        }
    }
}

/// The outcome of writing the entries.
#[must_use]
pub fn hosts(outcome: &Result<Applied, HostsError>) -> Vec<HostsFolder> {
    let applied = match outcome {
        Ok(applied) => applied,
        Err(e) => return vec![HostsFolder { name: "all".to_owned(), applied: false, remarks: vec![e.to_string()] }],
    };
    let row = |folder: &AppliedFolder| {
        let failure = folder.outcome.as_ref().err().map(ToString::to_string);
        let warnings = folder.warnings.iter().map(ToString::to_string);
        HostsFolder {
            name: folder.name.clone(),
            applied: failure.is_none(),
            remarks: failure.into_iter().chain(warnings).collect(),
        }
    };
    applied.folders.iter().map(row).collect()
}

/// What the user's own files say, beside what the configuration does.
#[must_use]
pub fn adopted(adopted: &hosts::Adopted, config: &Config) -> Vec<Adopted> {
    let left_out = |left: &hosts::LeftOut| match &left.host {
        Some(host) => format!("{host}: {}", left.why),
        None => left.why.to_string(),
    };
    let row = |folder: &hosts::AdoptedFolder| Adopted {
        name: folder.target.folder().to_owned(),
        file: folder.file.clone(),
        upstreams: folder.upstreams.iter().map(|upstream| upstream.url.to_string()).collect(),
        is_all: folder.is_all,
        left_out: folder.left_out.iter().map(left_out).collect(),
        is_overruled: match &folder.target {
            HostsTarget::Registry(registry) => config.upstreams_of(registry).is_some(),
            HostsTarget::Default => false,
        },
    };
    let says_something = |row: &Adopted| !row.upstreams.is_empty() || !row.left_out.is_empty();
    adopted.folders.iter().map(row).filter(says_something).collect()
}

impl fmt::Display for Adopted {
    /// `docker.io: https://mirror.corp, from /etc/containerd/certs.d/docker.io/hosts.toml`, and a line for each that was
    /// left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls = if self.upstreams.is_empty() { "nothing".to_owned() } else { self.upstreams.join(", ") };
        write!(f, "{}: {urls}, from {}", self.name, self.file.display())?;
        if self.is_all && !self.is_overruled {
            f.write_str("; not at its own address, for which a server stands there")?;
        }
        if self.is_overruled {
            f.write_str("; not asked: the configuration lists upstreams for it")?;
        }
        self.left_out.iter().try_for_each(|left| write!(f, "\n  not {left}"))
    }
}
