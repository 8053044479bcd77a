//! containerd's configuration: everything below one folder, and the parts that tests vary.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{Namespace, Release, tool};

/// The image of Pods' sandboxes.
const SANDBOX: &str = "reg.test/pause:3";

/// What differs from a plain set-up with hosts.toml in use.
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    /// The value of `config_path`; `None` leaves it unset, as packages do.
    pub config_path: Option<String>,
    /// More lines of the table that holds `config_path`, or of tables below it.
    pub registry: String,
    /// More lines of CRI's table for images: `concurrent_layer_fetch_buffer = 512` …
    pub images: String,
    /// Whether layers are dropped once they are unpacked.
    pub discards_layers: bool,
    /// The socket of a [snapshotter](crate::RemoteSnapshotter) that images are to be mounted by.
    pub snapshotter: Option<PathBuf>,
    /// More tables, of other plugins.
    pub tables: String,
    /// Files that are read after this one.
    pub imports: Vec<PathBuf>,
    /// Variables of its environment: proxies …
    pub environment: Vec<(String, String)>,
    /// Where it and `ctr` run, if not where the test does.
    pub namespace: Option<Namespace>,
    /// Whether CRI comes up; false for a configuration that keeps it from that.
    pub expects_cri: bool,
}

impl ContainerdConfig {
    /// One that reads hosts.toml files below `hosts_dir`.
    pub fn with_hosts(hosts_dir: &Path) -> Self {
        Self { config_path: Some(hosts_dir.display().to_string()), ..Self::default() }
    }

    /// Writes it for a release of containerd that lives in `folder`.
    pub(super) fn write(&self, release: Release, folder: &Path) -> Result<()> {
        std::fs::write(path(folder), self.text(release, folder)?)?;
        Ok(())
    }

    fn text(&self, release: Release, folder: &Path) -> Result<String> {
        let (version, cri, images) = match release.minor()? {
            (1, _) => (2, "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri"),
            _ => (3, "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"),
        };
        let (root, state, socket) = (root(folder), folder.join("state"), socket(folder));
        let (opt, nri, cni) = (folder.join("opt"), folder.join("nri"), folder.join("cni"));
        let config_path = self.config_path.as_ref().map_or_else(String::new, |path| format!("config_path = {path:?}"));
        let Self { registry, images: more, tables, imports, .. } = self;
        let discard = if self.discards_layers { "discard_unpacked_layers = true" } else { "" };
        let (snapshotter, plugin) = match &self.snapshotter {
            Some(socket) => (
                "snapshotter = \"remote\"\ndisable_snapshot_annotations = false",
                format!("[proxy_plugins.remote]\ntype = \"snapshot\"\naddress = {socket:?}"),
            ),
            None => ("", String::new()),
        };
        // To lower a process's score takes a capability that root in a container may lack.
        let restricted = "restrict_oom_score_adj = true";
        let (runtime, of_images) = match version {
            2 => (
                format!("[plugins.{cri:?}.containerd]\n{discard}\n{snapshotter}"),
                format!("{restricted}\nsandbox_image = {SANDBOX:?}"),
            ),
            _ => (
                format!("[plugins.{cri:?}]\n{restricted}"),
                format!("{discard}\n{snapshotter}\npinned_images = {{ sandbox = {SANDBOX:?} }}"),
            ),
        };
        // Only what runs containers needs it.
        let (runc, runc_root) = (tool("runc/usr/sbin/runc").unwrap_or_else(|_| "runc".into()), runc_root(folder));
        Ok(format!(
            r#"version = {version}
root = {root:?}
state = {state:?}
imports = {imports:?}
[grpc]
  address = {socket:?}
[debug]
  level = "debug"
[plugins."io.containerd.internal.v1.opt"]
  path = {opt:?}
[plugins."io.containerd.nri.v1.nri"]
  disable = true
  plugin_path = {nri:?}
  plugin_config_path = {nri:?}
  socket_path = {nri:?}
[plugins.{cri:?}.cni]
  bin_dir = {cni:?}
  conf_dir = {cni:?}
{runtime}
[plugins.{cri:?}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.{cri:?}.containerd.runtimes.runc.options]
  BinaryName = {runc:?}
  Root = {runc_root:?}
[plugins.{images:?}]
{of_images}
{more}
[plugins.{images:?}.registry]
{config_path}
{registry}
{tables}
{plugin}
"#
        ))
    }
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            config_path: None,
            registry: String::new(),
            images: String::new(),
            discards_layers: false,
            snapshotter: None,
            tables: String::new(),
            imports: Vec::new(),
            environment: Vec::new(),
            namespace: None,
            expects_cri: true,
        }
    }
}

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("config.toml")
}

pub(super) fn root(folder: &Path) -> PathBuf {
    folder.join("root")
}

pub(super) fn socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

/// Where runc keeps what it knows.
pub(super) fn runc_root(folder: &Path) -> PathBuf {
    folder.join("runc")
}
