//! Looking at the node: containerd's answers, then what files and the kernel say.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use nix::sys::statvfs::statvfs;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use x509_parser::pem::Pem;

use super::Agent;
use super::facts::{Authority, Disk, Facts, Folder, Listener, Root, Runtime, Unlisted, same_path};
use super::hosts_file::HostsFile;
use super::platform::Platform;
use super::{inspect, proc};
use crate::config::Config;
use crate::containerd::client::{Client, ClientError, CriStatus, PluginState, Release};
use crate::containerd::setup::{self, Setup};
use crate::upstream::Authorities;

/// No file that is looked at here is larger.
const MAX_BYTES: u64 = 1 << 20;
/// The agent's socket is on this machine.
const CONNECT: Duration = Duration::from_secs(1);

/// Everything that the checks want to know. What can't be had stays open in it.
pub(super) async fn gather(config: &Config, agent: Agent) -> anyhow::Result<Facts> {
    let client = Client::new(&config.containerd)?;
    let release = client.version().await;
    let (plugins, status, process, content) = match &release {
        Ok(_) => (
            client.cri_plugins().await.ok(),
            client.cri_status().await.ok(),
            client.process().await.ok().flatten(),
            client.content_root().await.ok(),
        ),
        // Each further call would only wait as long again.
        Err(_) => (None, None, None, None),
    };
    let agent_process = agent_process(config, &agent).await;
    let told = Told { config: config.clone(), agent, agent_process, release, plugins, status, process, content };
    tokio::task::spawn_blocking(move || told.and_seen()).await.context("looking at this node's files failed")
}

/// The process behind the admin socket, where the kernel tells.
async fn agent_process(config: &Config, agent: &Agent) -> Option<i32> {
    if matches!(agent, Agent::Silent) {
        return None;
    }
    let connect = tokio::net::UnixStream::connect(&config.admin.socket);
    let stream = tokio::time::timeout(CONNECT, connect).await.ok()?.ok()?;
    stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
}

/// What the agent and containerd have said, and the configuration that tells where to look.
struct Told {
    config: Config,
    agent: Agent,
    agent_process: Option<i32>,
    release: Result<Release, ClientError>,
    plugins: Option<Vec<PluginState>>,
    status: Option<CriStatus>,
    process: Option<i32>,
    content: Option<PathBuf>,
}

impl Told {
    /// With what is seen of this machine. Blocking.
    fn and_seen(self) -> Facts {
        let Self { config, agent, agent_process, release, plugins, status, process, content } = self;
        let surroundings = inspect::surroundings();
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let platform = Platform::detect(Path::exists, &os_release, &surroundings.kernel);
        let process = process.filter(|pid| inspect::is_containerd(*pid));
        let (config_argument, program) = process.map_or((None, None), inspect::started_with);
        let setup_file = setup_file(&config.containerd.config, config_argument.as_deref(), platform).to_owned();
        let version = release.as_ref().ok().and_then(|release| release.version);
        let setup = Setup::read(&setup::Disk, &setup_file, version);
        // A root given on the command line stands in no file, but the running containerd tells.
        let containerd_root = content.as_deref().and_then(Path::parent).unwrap_or(&setup.root).to_owned();
        let roots = roots(&setup, &config.containerd.hosts_dir);
        let sockets = listening();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Facts {
            agent,
            platform,
            runtime: Runtime {
                release,
                plugins,
                status,
                environment: inspect::containerd_environment(process, platform),
                config_argument,
                program,
            },
            setup_file,
            authorities: authorities(&roots),
            roots,
            port: listeners(&sockets, config.mirror.listen.port()),
            is_port_open: inspect::is_open(config.mirror.listen),
            taken_ports: sockets.iter().map(|(address, _)| address.port()).collect(),
            disk: disk(&config.cache.dir, &containerd_root),
            needs: inspect::needs(&config, &surroundings, &containerd_root, agent_process),
            surroundings,
            selinux: inspect::selinux(agent_process),
            trusted: Authorities::look(),
            agent_environment: agent_process.and_then(inspect::process_proxies),
            peers_ca: config.peers.ca.as_deref().map(authority),
            textfile: config.admin.textfile.as_deref().map(inspect::textfile),
            now: i64::try_from(now).unwrap_or(i64::MAX),
            containerd_root,
            setup,
            config,
        }
    }
}

/// containerd's root file: the one that it was started with, or the one that it would be.
fn setup_file<'a>(configured: &'a Path, argument: Option<&'a Path>, platform: Platform) -> &'a Path {
    let usual = Path::new(platform.paths().config);
    match argument {
        Some(file) if file.exists() => file,
        // A distribution's own place counts only where the configured one has nothing.
        _ if !configured.exists() && usual.exists() => usual,
        _ => configured,
    }
}

fn roots(setup: &Setup, own: &Path) -> Vec<Root> {
    let mut paths: Vec<&Path> = setup.config_path.iter().flat_map(|path| path.folders()).collect();
    match paths.iter().position(|path| same_path(path, own)) {
        Some(at) => paths[at] = own,
        None => paths.push(own),
    }
    paths.into_iter().map(|path| Root { path: path.to_owned(), folders: folders(path) }).collect()
}

fn folders(root: &Path) -> Result<Vec<Folder>, Unlisted> {
    let entries = fs::read_dir(root).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unlisted::Missing,
        _ => Unlisted::Unreadable(error.to_string()),
    })?;
    let folder = |entry: fs::DirEntry| {
        let path = entry.path();
        // Links to folders count as such.
        path.is_dir()
            .then(|| Folder { name: entry.file_name().to_string_lossy().into_owned(), file: hosts_file(&path) })
    };
    let mut folders: Vec<_> = entries.filter_map(|entry| folder(entry.ok()?)).collect();
    folders.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(folders)
}

fn hosts_file(folder: &Path) -> HostsFile {
    match read(&folder.join("hosts.toml")).map(String::from_utf8) {
        Ok(Ok(text)) => HostsFile::parse(&text, folder),
        Ok(Err(_)) => HostsFile::Malformed { line: 1, message: "it isn't UTF-8".to_owned() },
        Err(error) if error.kind() == io::ErrorKind::NotFound => HostsFile::Absent,
        Err(error) => HostsFile::Unreadable(error.to_string()),
    }
}

fn authorities(roots: &[Root]) -> BTreeMap<PathBuf, Authority> {
    let files = roots.iter().flat_map(|root| root.folders.iter().flatten());
    let named = files.flat_map(|folder| folder.file.hosts()).flat_map(|host| &host.ca);
    named.map(|path| (path.clone(), authority(path))).collect()
}

/// The one of its certificates that is valid for the shortest time.
fn authority(path: &Path) -> Authority {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Authority::Missing,
        Err(error) => return Authority::Unreadable(error.to_string()),
    };
    let validity = |pem: Pem| {
        let certificate = pem.parse_x509().ok()?;
        let validity = certificate.validity();
        Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
    };
    let valid = Pem::iter_from_buffer(&bytes).filter_map(|pem| validity(pem.ok()?));
    valid.min_by_key(|(_, until)| *until).map_or(Authority::NotPem, |(from, until)| Authority::Valid { from, until })
}

fn listening() -> Vec<(SocketAddr, u64)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    tables.iter().flat_map(|table| proc::listening(table)).collect()
}

fn listeners(sockets: &[(SocketAddr, u64)], port: u16) -> Vec<Listener> {
    let sockets = sockets.iter().filter(|(address, _)| address.port() == port);
    sockets.map(|(address, inode)| Listener { address: *address, process: owner(*inode) }).collect()
}

/// The process that has a socket open: the first that is found, where we may look.
fn owner(inode: u64) -> Option<(u32, String)> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let link = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
        files.flatten().filter_map(link).any(|link| link.to_str().and_then(proc::socket_inode) == Some(inode))
    };
    let pid = processes.into_iter().find(has)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((pid, name.trim_end().to_owned()))
}

fn disk(cache: &Path, containerd: &Path) -> Option<Disk> {
    // Before the first start the folder isn't there: its parent tells which disk it will be on.
    let existing = inspect::existing(cache);
    let figures = statvfs(existing).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(figures.fragment_size());
    let (total, free, available) =
        (bytes(figures.blocks()), bytes(figures.blocks_free()), bytes(figures.blocks_available()));
    let used = total.saturating_sub(free);
    // As df counts: what is reserved for root is neither used nor free.
    let percent = (used * 100).div_ceil((used + available).max(1));
    let shared = mount(existing).zip(mount(containerd)).map(|(a, b)| a == b);
    Some(Disk { total, available, used_percent: u8::try_from(percent).unwrap_or(100), shared })
}

/// Filesystem and mount: files can be linked only within both.
fn mount(path: &Path) -> Option<(u32, u32, u64)> {
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    Some((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real files, a real certificate and a real listener, below a folder of their own.
    #[tokio::test]
    async fn a_node_is_looked_at() {
        let node = tempfile::TempDir::new().unwrap();
        let folder = node.path().join("certs.d/_default");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir(node.path().join("certs.d/docker.io")).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
        fs::write(folder.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap();
        let hosts = format!("[host.'https://{listen}']\nca = 'ca.pem'\n[host.'https://other']\nca = '/gone.pem'\n");
        fs::write(folder.join("hosts.toml"), hosts).unwrap();
        let file = format!("version = 2\nroot = {:?}\n", node.path());
        fs::write(node.path().join("config.toml"), file).unwrap();

        let mut config = Config::default();
        config.mirror.listen = listen;
        config.cache.dir = node.path().join("not/yet/there");
        config.containerd.socket = node.path().join("containerd.sock");
        config.containerd.hosts_dir = node.path().join("certs.d");
        config.containerd.config = node.path().join("config.toml");
        let facts = gather(&config, Agent::Silent).await.unwrap();

        assert!(facts.runtime.release.as_ref().is_err_and(|error| error.is_unreachable()));
        assert_eq!((facts.setup.format, facts.setup.faults.len()), (2, 0));
        let folders = facts.own_root().unwrap().folders.as_ref().unwrap();
        assert_eq!(folders.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["_default", "docker.io"]);
        assert_eq!(folders[1].file, HostsFile::Absent);
        let valid = Authority::Valid { from: 1_577_836_800, until: 1_609_459_200 };
        assert_eq!(facts.authorities[&folder.join("ca.pem")], valid);
        assert_eq!(facts.authorities[Path::new("/gone.pem")], Authority::Missing);
        assert_eq!(facts.port.len(), 1);
        assert_eq!(facts.port[0].process.as_ref().map(|(pid, _)| *pid), Some(std::process::id()));
        let disk = facts.disk.as_ref().unwrap();
        assert!(disk.total > 0 && disk.available <= disk.total && disk.used_percent <= 100);
        assert_eq!(disk.shared, Some(true));
    }
}
