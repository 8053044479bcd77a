//! Looking closer at this machine: rights, SELinux, processes, ports.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::environment;
use super::facts::{Environment, Need, Proxies, Reach, SeLinux};
use super::platform::Platform;
use super::proc;
use super::surroundings::Surroundings;
use crate::config::{Config, reachable};
use crate::containerd::setup::Disk;

/// Whoever takes connections on this machine does so within this time.
const CONNECT: Duration = Duration::from_millis(500);

/// Where we are.
pub(super) fn surroundings() -> Surroundings {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let has_service = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let is_root = nix::unistd::geteuid().is_root();
    Surroundings::new(&mountinfo, has_service, is_root, kernel.trim().to_owned())
}

/// The folders that the agent has to get at, and how far it would: as far as we, and no further than its own process.
pub(super) fn needs(config: &Config, surroundings: &Surroundings, containerd: &Path, agent: Option<i32>) -> Vec<Need> {
    let is_bound = agent.is_some_and(is_bound_by_modes);
    let need = |path: &Path, purpose, access| {
        let mut need = need(surroundings, path, purpose, access);
        if need.reach == Reach::Granted && is_bound && access.contains(Access::WRITE_OK) && !is_roots(path) {
            need.reach = Reach::Denied(owner(path));
        }
        need
    };
    let content = containerd.join("io.containerd.content.v1.content");
    let socket = config.containerd.socket.parent().unwrap_or(Path::new("/"));
    let mut needs = vec![
        need(socket, "containerd's socket", Access::EXEC_OK),
        need(&content, "what containerd holds, to be linked", Access::READ_OK | Access::EXEC_OK),
        need(existing(&config.cache.dir), "the cache", Access::WRITE_OK | Access::EXEC_OK),
    ];
    if !config.containerd.registries.is_empty() {
        let hosts = existing(&config.containerd.hosts_dir);
        needs.push(need(hosts, "the entries in hosts.toml", Access::WRITE_OK | Access::EXEC_OK));
    }
    needs
}

/// The nearest folder above that there is: the agent makes the rest.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(path)
}

fn need(surroundings: &Surroundings, path: &Path, purpose: &'static str, access: Access) -> Need {
    let reach = match accessat(CWD, path, access, AtFlags::EACCESS).map_err(|e| io::Error::from(e).kind()) {
        // The image may have a folder of that name, and the container's root filesystem takes whatever is written.
        _ if !surroundings.sees(path) => Reach::Unmounted,
        Ok(()) => Reach::Granted,
        Err(io::ErrorKind::NotFound) => Reach::Missing,
        Err(io::ErrorKind::ReadOnlyFilesystem) => Reach::ReadOnly,
        Err(_) => Reach::Denied(owner(path)),
    };
    Need { path: path.to_owned(), purpose, reach }
}

/// Whether a process is root without the capability that makes root's word count everywhere, as the unit has it.
fn is_bound_by_modes(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| proc::is_bound_root(&status))
}

/// Whether root may write there by owner, group and mode alone.
fn is_roots(folder: &Path) -> bool {
    let Ok(metadata) = folder.metadata() else { return true };
    let class = match (metadata.uid(), metadata.gid()) {
        (0, _) => 0o200,
        (_, 0) => 0o020,
        _ => 0o002,
    };
    metadata.mode() & class != 0
}

fn owner(path: &Path) -> u32 {
    path.ancestors().find_map(|path| path.metadata().ok()).map_or(0, |metadata| metadata.uid())
}

/// What SELinux calls a process; `None` where there is none of it.
pub(super) fn selinux(process: Option<i32>) -> Option<SeLinux> {
    let process = process.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let context = fs::read_to_string(format!("/proc/{process}/attr/current")).ok()?;
    let context = context.trim_end_matches(['\0', '\n']).to_owned();
    // AppArmor writes there too, names of profiles without a colon, or "unconfined".
    if context.split(':').count() < 3 {
        return None;
    }
    let enforce = fs::read_to_string("/sys/fs/selinux/enforce").ok();
    Some(SeLinux { context, is_enforcing: enforce.map(|text| text.trim() == "1") })
}

/// containerd's process, if it is one: behind a socket that systemd made there is systemd.
pub(super) fn is_containerd(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("containerd"))
}

/// The proxies that containerd has: by its process, or by the files that it is started with.
pub(super) fn containerd_environment(process: Option<i32>, platform: Platform) -> Option<Environment> {
    if let Some(proxies) = process.and_then(process_proxies) {
        return Some(Environment { proxies, files: Vec::new() });
    }
    environment::read(&Disk, platform).map(|(proxies, files)| Environment { proxies, files })
}

/// The proxy variables of a process, where we may read them.
pub(super) fn process_proxies(pid: i32) -> Option<Proxies> {
    fs::read(format!("/proc/{pid}/environ")).ok().map(|environ| proc::proxies(&environ))
}

/// The file that containerd was started with, and its program.
pub(super) fn started_with(pid: i32) -> (Option<PathBuf>, Option<PathBuf>) {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let file = proc::config_argument(&line).filter(|file| file.is_absolute());
    (file, fs::read_link(format!("/proc/{pid}/exe")).ok())
}

/// Whether somebody takes connections at the mirror's address: one who has no socket on this node takes them by a rule
/// of the packet filter, as hostPorts of Pods are made.
pub(super) fn is_open(listen: SocketAddr) -> bool {
    TcpStream::connect_timeout(&reachable(listen), CONNECT).is_ok()
}

/// Whether the folder of the textfile takes a file.
pub(super) fn textfile(file: &Path) -> Result<(), String> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    match accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::from(error).to_string()),
    }
}
