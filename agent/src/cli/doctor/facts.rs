use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::AgentView;
use super::hosts_file::HostsFile;
use super::platform::Platform;
use crate::config::Config;
use crate::containerd::client::{ClientError, CriStatus, PluginState, Release, Version};
use crate::containerd::setup::Setup;

/// Everything that the checks look at.
pub(super) struct Facts {
    pub(super) config: Config,
    pub(super) agent: Option<AgentView>,
    pub(super) platform: Platform,
    pub(super) runtime: Runtime,
    /// containerd's root configuration file as it was found, and what it says.
    pub(super) setup_file: PathBuf,
    pub(super) setup: Setup,
    /// containerd's folder, below which its content is.
    pub(super) containerd_root: PathBuf,
    /// The folders that `config_path` names and the one that we write to, in the order in which containerd looks.
    pub(super) roots: Vec<Root>,
    /// The certificates that hosts.toml files name as `ca`.
    pub(super) authorities: BTreeMap<PathBuf, Authority>,
    pub(super) port: Vec<Listener>,
    pub(super) disk: Option<Disk>,
    /// Seconds since 1970.
    pub(super) now: i64,
}

/// containerd as it runs.
pub(super) struct Runtime {
    pub(super) release: Result<Release, ClientError>,
    /// Empty where they are switched off; `None` where nobody could be asked.
    pub(super) plugins: Option<Vec<PluginState>>,
    pub(super) status: Option<CriStatus>,
    /// Its proxy variables; `None` where they can't be read.
    pub(super) environment: Option<Proxies>,
}

/// The variables by which Go programs choose a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Proxies {
    pub(super) http: Option<String>,
    pub(super) https: Option<String>,
    pub(super) no: Option<String>,
}

/// A folder of registry folders.
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// By name; or why they can't be listed.
    pub(super) folders: Result<Vec<Folder>, Unlisted>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unlisted {
    Missing,
    Unreadable(String),
}

/// The folder of one registry, or `_default`.
pub(super) struct Folder {
    pub(super) name: String,
    pub(super) file: HostsFile,
}

/// A file that a hosts.toml names as `ca`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Authority {
    Missing,
    Unreadable(String),
    NotPem,
    /// From when to when it is valid, in seconds since 1970.
    Valid {
        from: i64,
        until: i64,
    },
}

/// Who listens on the mirror's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    /// Process ID and name, where they can be read.
    pub(super) process: Option<(u32, String)>,
}

/// The filesystem that the cache is, or will be, on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) total: u64,
    pub(super) available: u64,
    pub(super) used_percent: u8,
    /// Whether files can be linked between it and containerd's content. `None`: containerd's folder isn't seen.
    pub(super) shared: Option<bool>,
}

impl Facts {
    pub(super) fn version(&self) -> Option<Version> {
        self.runtime.release.as_ref().ok()?.version
    }

    /// The root that we write to.
    pub(super) fn own_root(&self) -> Option<&Root> {
        self.roots.iter().find(|root| root.path == self.config.containerd.hosts_dir)
    }
}

impl Folder {
    pub(super) fn path(&self, root: &Root) -> PathBuf {
        root.path.join(&self.name)
    }
}

/// Whether two paths are the same but for slashes at the end.
pub(super) fn same_path(a: &Path, b: &Path) -> bool {
    a.components().eq(b.components())
}
