use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Agent;
use super::hosts_file::HostsFile;
use super::platform::Platform;
use super::surroundings::Surroundings;
use crate::config::Config;
use crate::containerd::client::{ClientError, CriStatus, PluginState, Release, Version};
use crate::containerd::setup::Setup;
use crate::upstream::Authorities;

/// Everything that the checks look at.
pub(super) struct Facts {
    pub(super) config: Config,
    pub(super) agent: Agent,
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
    /// Whether somebody takes connections there, who may have no socket on this node.
    pub(super) is_port_open: bool,
    /// The ports on which somebody listens.
    pub(super) taken_ports: BTreeSet<u16>,
    pub(super) disk: Option<Disk>,
    pub(super) surroundings: Surroundings,
    /// Folders that the agent has to get at.
    pub(super) needs: Vec<Need>,
    /// What SELinux calls the agent, or us where it isn't seen.
    pub(super) selinux: Option<SeLinux>,
    /// The certificate authorities that are believed.
    pub(super) trusted: Authorities,
    /// The agent's proxy variables; `None` where they can't be read.
    pub(super) agent_environment: Option<Proxies>,
    /// The file that `peers.ca` names.
    pub(super) peers_ca: Option<Authority>,
    /// Why the textfile's folder takes no file, where one is configured.
    pub(super) textfile: Option<Result<(), String>>,
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
    pub(super) environment: Option<Environment>,
    /// The file that it was started with, where that stands on its command line.
    pub(super) config_argument: Option<PathBuf>,
    /// Its program.
    pub(super) program: Option<PathBuf>,
}

/// The proxy variables of a process that isn't ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) proxies: Proxies,
    /// The files that say so; empty where the process itself was looked at.
    pub(super) files: Vec<PathBuf>,
}

/// A folder that the agent has to get at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) path: PathBuf,
    /// What for.
    pub(super) purpose: &'static str,
    pub(super) reach: Reach,
}

/// How far we get with a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// As far as it takes.
    Granted,
    Missing,
    /// In a Pod: it is the image's, not the host's.
    Unmounted,
    ReadOnly,
    /// Its owner's user id.
    Denied(u32),
}

/// What SELinux says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeLinux {
    /// `system_u:system_r:container_t:s0:c1,c2`.
    pub(super) context: String,
    /// `None` where it can't be read.
    pub(super) is_enforcing: Option<bool>,
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
