//! What Larder has made on this node.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::admin::Textfile;
use crate::cli::run::TAKEOVER;
use crate::config::Config;
use crate::containerd::hosts::HostsDir;
use crate::store;

/// What the rest of the house keeps in the cache's folder, beside the store: `tls` and `peers` as [`crate::mirror`] and
/// [`crate::wire`] write them, and the socket where one agent takes over from another.
const BESIDE: [&str; 11] = [
    "tls/ca.new",
    "tls/ca-next.new",
    "tls/ca.pem",
    "tls/ca-next.pem",
    "tls",
    "peers/node.new",
    "peers/node",
    "peers/members.new",
    "peers/members",
    "peers",
    TAKEOVER,
];

/// What there is, as far as it is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Traces {
    /// In containerd's hosts folder: it is taken back by [`HostsDir::restore`].
    pub(super) hosts: Vec<PathBuf>,
    /// The cache, in an order in which it can be removed: what lies in a folder before the folder, the lock last.
    pub(super) cache: Vec<PathBuf>,
    /// Elsewhere, in such an order.
    pub(super) elsewhere: Vec<PathBuf>,
}

impl Traces {
    /// Looks for them. Blocking.
    pub(super) fn find(config: &Config, keep_cache: bool) -> anyhow::Result<Self> {
        let hosts_dir = &config.containerd.hosts_dir;
        let hosts = HostsDir::traces(hosts_dir).with_context(|| format!("the hosts in {}", hosts_dir.display()))?;
        let cache = cache(&config.cache.dir, keep_cache)?;
        Ok(Self { hosts, cache, elsewhere: elsewhere(config) })
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.cache.is_empty() && self.elsewhere.is_empty()
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.hosts.iter().chain(&self.cache).chain(&self.elsewhere)
    }
}

/// Whether anything of the cache is in the folder `dir`. Where its lock is, as good as always, nothing else is looked at.
/// Blocking.
pub(super) fn has_cache(dir: &Path) -> anyhow::Result<bool> {
    Ok(store::has_lock(dir) || !cache(dir, false)?.is_empty())
}

fn cache(dir: &Path, keep_cache: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut traces: Vec<_> = BESIDE.map(|name| dir.join(name)).into_iter().filter(|path| is_there(path)).collect();
    if !keep_cache {
        traces.extend(store::traces(dir).with_context(|| format!("the cache in {}", dir.display()))?);
    }
    Ok(traces)
}

fn elsewhere(config: &Config) -> Vec<PathBuf> {
    let socket = config.admin.socket.clone();
    let mut traces = Vec::new();
    if let Some(textfile) = &config.admin.textfile {
        traces.extend([Textfile::draft(textfile), textfile.clone()]);
    }
    traces.push(socket);
    traces.retain(|path| is_there(path));
    traces
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
