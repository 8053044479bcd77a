//! Each wrong set-up, and what is said of it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::cli::doctor::AgentView;
use crate::cli::doctor::facts::{Authority, Disk, Folder, Listener, Proxies, Root, Runtime, Unlisted};
use crate::cli::doctor::finding::{Outcome, Severity};
use crate::cli::doctor::hosts_file::HostsFile;
use crate::cli::doctor::platform::Platform;
use crate::config::Config;
use crate::containerd::canary::{Report, Verdict};
use crate::containerd::client::{ClientError, CriStatus, PluginState, Release};
use crate::containerd::setup::{Files, Setup};

const NOW: i64 = 1_800_000_000;
const CONFIG: &str = "/etc/containerd/config.toml";
const CERTS: &str = "/etc/containerd/certs.d";
const SOUND: &str =
    "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n";
const OURS: &str = "[host.'https://127.0.0.1:7439']\ncapabilities = ['pull', 'resolve']\nca = 'larder-ca.pem'\n";

/// The root file alone; an error where there is none.
struct RootFile(Result<String, io::ErrorKind>);

impl Files for RootFile {
    fn read(&self, path: &Path) -> io::Result<String> {
        if path == Path::new(CONFIG) { self.0.clone().map_err(Into::into) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn names(&self, _: &Path) -> Vec<String> {
        Vec::new()
    }

    fn exists(&self, _: &Path) -> bool {
        false
    }
}

/// A node where all is well.
fn sound() -> Facts {
    let mut facts = Facts {
        config: Config::default(),
        agent: Some(view(Verdict::Used)),
        platform: Platform::Plain,
        runtime: Runtime {
            release: release("2.3.4"),
            plugins: Some(vec![plugin(None)]),
            status: None,
            environment: None,
        },
        setup_file: CONFIG.into(),
        setup: Setup::read(&RootFile(Ok(String::new())), Path::new(CONFIG), None),
        roots: vec![Root { path: CERTS.into(), folders: Ok(vec![folder("_default", OURS)]) }],
        authorities: BTreeMap::from([(
            PathBuf::from("/etc/containerd/certs.d/_default/larder-ca.pem"),
            Authority::Valid { from: NOW - 10, until: NOW + 365 * 86_400 },
        )]),
        port: vec![Listener { address: "127.0.0.1:7439".parse().unwrap(), process: Some((7, "larder".to_owned())) }],
        disk: Some(Disk { total: 100 << 30, available: 60 << 30, used_percent: 40, shared: Some(true) }),
        now: NOW,
    };
    configure(&mut facts, SOUND);
    facts
}

fn view(verdict: Verdict) -> AgentView {
    let at = u64::try_from(NOW).unwrap() - 60;
    AgentView { canary: Some(Report { verdict, at, took: Duration::from_secs(1) }), requests: 12 }
}

fn release(text: &str) -> Result<Release, ClientError> {
    Ok(Release { text: text.to_owned(), version: text.parse().ok() })
}

fn plugin(error: Option<&str>) -> PluginState {
    PluginState { uri: "io.containerd.cri.v1.images".to_owned(), error: error.map(str::to_owned) }
}

fn folder(name: &str, text: &str) -> Folder {
    Folder { name: name.to_owned(), file: HostsFile::parse(text, &Path::new(CERTS).join(name)) }
}

fn configure(facts: &mut Facts, text: &str) {
    facts.setup = Setup::read(&RootFile(Ok(text.to_owned())), Path::new(CONFIG), facts.version());
}

fn runs(facts: &mut Facts, version: &str, config: &str) {
    facts.runtime.release = release(version);
    configure(facts, config);
}

/// The one problem, and its text with everything in it.
#[track_caller]
fn problem(facts: &Facts) -> (Finding, String) {
    let mut problems: Vec<Finding> = all(facts).into_iter().filter(|f| f.severity == Severity::Problem).collect();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    let finding = problems.remove(0);
    let text = serde_json::to_string(&finding).unwrap().replace("\\\"", "\"");
    (finding, text)
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[track_caller]
fn note(facts: &Facts) -> String {
    let found = all(facts);
    let notes: Vec<_> = found.iter().filter(|f| f.severity != Severity::Ok).collect();
    let [note] = notes[..] else { panic!("{notes:#?}") };
    assert_ne!(note.severity, Severity::Problem);
    serde_json::to_string(note).unwrap()
}

#[test]
fn all_is_well() {
    let findings = all(&sound());
    assert_eq!(Outcome::of(&findings), Outcome::Fine, "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
    assert_eq!(findings[0].check, "canary");
}

#[test]
fn the_agent_is_down() {
    let mut facts = sound();
    facts.agent = None;
    facts.port.clear();
    has(&problem(&facts).1, &["/run/larder/larder.sock", "systemctl start larder", "kubectl"]);
}

#[test]
fn the_canary_says() {
    let mut facts = sound();
    facts.agent = Some(view(Verdict::Unused { pull_error: "no such host".to_owned() }));
    has(&problem(&facts).1, &["doesn't pull through the mirror (1m ago)", "no such host", "12 requests"]);
    facts.agent = Some(view(Verdict::Failing { pull_error: "no space left".to_owned() }));
    has(&problem(&facts).1, &["its pull failed", "no space left"]);
    facts.agent = Some(view(Verdict::Unknown { reason: "no socket".to_owned() }));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
    facts.agent = Some(AgentView { canary: None, requests: 0 });
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
    facts.config.containerd.canary_interval = crate::config::Span::secs(0);
    has(&note(&facts), &["canary is off"]);
    let mut facts = sound();
    facts.now += 3 * 3600;
    has(&note(&facts), &["older than canary_interval"]);
}

#[test]
fn containerd_does_not_answer() {
    let mut facts = sound();
    let socket = PathBuf::from("/run/containerd/containerd.sock");
    facts.runtime.release = Err(ClientError::Refused { socket: socket.clone() });
    has(&problem(&facts).1, &["nobody listens", "systemctl start containerd"]);
    facts.runtime.release = Err(ClientError::SocketMissing { socket: socket.clone() });
    facts.platform = Platform::K3s;
    has(&problem(&facts).1, &["there is no socket", "socket = \"/run/k3s/containerd/containerd.sock\""]);
    facts.runtime.release = Err(ClientError::PermissionDenied { socket });
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
}

#[test]
fn versions() {
    let mut facts = sound();
    runs(
        &mut facts,
        "1.5.9",
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'",
    );
    has(&problem(&facts).1, &["older than 1.6"]);
    for (version, said) in
        [("2.1.1", "parallel"), ("2.1.9", "end of its life"), ("2.0.5", "end of its life"), ("weird", "no version")]
    {
        runs(&mut facts, version, SOUND);
        has(&note(&facts), &[said]);
    }
    runs(&mut facts, "2.2.7", SOUND);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
}

#[test]
fn the_plugin_is_not_loaded() {
    let mut facts = sound();
    facts.runtime.plugins = Some(vec![plugin(None), plugin(Some("invalid cri image config"))]);
    has(&problem(&facts).1, &["io.containerd.cri.v1.images isn't loaded", "invalid cri image config"]);
    facts.runtime.plugins = Some(Vec::new());
    has(&problem(&facts).1, &["no plugin that serves kubelet", "disabled_plugins"]);
    configure(&mut facts, &format!("disabled_plugins = ['io.containerd.grpc.v1.cri']\n{SOUND}"));
    has(&problem(&facts).1, &["switches off", "config.toml:1", "disabled_plugins = []"]);
}

#[test]
fn config_path_is_not_set() {
    let mut facts = sound();
    for (version, file, section) in [
        ("1.7.24", "version = 2\n", "[plugins.\"io.containerd.grpc.v1.cri\".registry]"),
        ("1.7.24", "root = '/x'\n", "[plugins.cri.registry]"),
        ("2.0.5", "version = 2\n", "[plugins.\"io.containerd.grpc.v1.cri\".registry]"),
        ("2.0.5", "version = 3\n", "[plugins.'io.containerd.cri.v1.images'.registry]"),
    ] {
        runs(&mut facts, version, file);
        has(
            &problem(&facts).1,
            &[
                "config_path isn't set",
                section,
                "config_path = \"/etc/containerd/certs.d\"",
                "systemctl restart containerd",
            ],
        );
    }
}

#[test]
fn there_is_no_configuration_file() {
    let mut facts = sound();
    for (version, lines) in [
        ("1.7.24", ["version = 2", "io.containerd.grpc.v1.cri"]),
        ("2.0.5", ["version = 3", "io.containerd.cri.v1.images"]),
    ] {
        facts.runtime.release = release(version);
        facts.setup = Setup::read(&RootFile(Err(io::ErrorKind::NotFound)), Path::new(CONFIG), facts.version());
        has(&problem(&facts).1, &["config_path isn't set", lines[0], lines[1]]);
    }
}

/// What is printed is put into the file, and has to be right there: read back as containerd reads it.
#[test]
fn the_lines_mend_it() {
    for version in ["1.6.20", "1.7.24", "2.0.5", "2.1.9", "2.2.0", "2.3.4"] {
        for before in [None, Some("version = 2\n"), Some("root = '/x'\n"), Some("version = 3\n")] {
            if version.starts_with('1') && before == Some("version = 3\n") {
                continue;
            }
            let mut facts = sound();
            facts.runtime.release = release(version);
            let file = before.map(str::to_owned).ok_or(io::ErrorKind::NotFound);
            facts.setup = Setup::read(&RootFile(file), Path::new(CONFIG), facts.version());
            let lines = &problem(&facts).0.mend[0].lines;
            let mended = format!("{}{}", before.unwrap_or_default(), lines.join("\n"));
            configure(&mut facts, &mended);
            assert_eq!(facts.setup.faults, [], "{version} {before:?}: {mended}");
            assert!(
                !all(&facts).iter().any(|f| f.severity == Severity::Problem),
                "{version} {before:?}: {mended}\n{:#?}",
                all(&facts)
            );
        }
    }
}

#[test]
fn a_list_in_transfer_mode() {
    let list = SOUND.replace("certs.d'", "certs.d:/etc/docker/certs.d'");
    let mut facts = sound();
    runs(&mut facts, "2.3.4", &list);
    let (finding, text) = problem(&facts);
    has(&text, &["is a list", "transfer service", "config.toml:3", "use_local_image_pull = true"]);
    assert_eq!(finding.mend[0].lines, ["  config_path = \"/etc/containerd/certs.d\""]);
    // The second way works too.
    let (header, key) = (&finding.mend[1].lines[0], &finding.mend[1].lines[1]);
    configure(&mut facts, &format!("{list}{header}\n{key}\n"));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine, "{:#?}", all(&facts));
    // It is the default of 2.2 and later, too.
    runs(&mut facts, "2.2.3", "version = 3\n");
    has(&problem(&facts).1, &["is a list", "containerd's own default", "io.containerd.cri.v1.images"]);
    runs(
        &mut facts,
        "1.7.24",
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d:/x'",
    );
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
}

#[test]
fn mirrors_beside_config_path() {
    let mut facts = sound();
    configure(
        &mut facts,
        &format!(
            "{SOUND}[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://m']\n"
        ),
    );
    has(&problem(&facts).1, &["registry.mirrors stands beside", "config.toml:4", "refuses to load", "[[registry]]"]);
}

#[test]
fn another_folder() {
    let mut facts = sound();
    configure(&mut facts, &SOUND.replace("/etc/containerd/certs.d", "/other"));
    has(
        &problem(&facts).1,
        &["config_path is \"/other\"", "hosts_dir = \"/other\"", "config_path = \"/etc/containerd/certs.d\""],
    );
    // A slash at the end is the same folder.
    configure(&mut facts, &SOUND.replace("certs.d", "certs.d/"));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
}

#[test]
fn what_containerd_tells_goes_before_what_its_file_says() {
    let tells = |path: &str| {
        Some(CriStatus { unmet: Vec::new(), config: Some(serde_json::json!({"registry": {"configPath": path}})) })
    };
    let mut facts = sound();
    let v2 = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'";
    runs(&mut facts, "1.7.24", v2);
    facts.runtime.status = tells("");
    has(&problem(&facts).1, &["runs with config_path = \"\"", "systemctl restart containerd"]);
    facts.runtime.status = tells(CERTS);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    // Its file can't be read.
    facts.setup = Setup::read(&RootFile(Err(io::ErrorKind::PermissionDenied)), Path::new(CONFIG), facts.version());
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
    facts.runtime.status = tells("");
    has(&problem(&facts).1, &["config_path isn't set, says containerd"]);
}

#[test]
fn files_that_containerd_does_not_start_with() {
    let mut facts = sound();
    configure(&mut facts, &format!("imports = ['gone.toml']\n{SOUND}"));
    has(&problem(&facts).1, &["config.toml:1", "gone.toml", "doesn't start"]);
}

#[test]
fn layers_are_thrown_away() {
    let mut facts = sound();
    configure(
        &mut facts,
        &format!(
            "{}[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n",
            SOUND.replace("certs.d'", "certs.d:/x'")
        ),
    );
    has(&note(&facts), &["discard_unpacked_layers", "config.toml:5", "changing it alone"]);
}

fn with_folders(folders: Vec<Folder>) -> Facts {
    let mut facts = sound();
    facts.roots[0].folders = Ok(folders);
    facts
}

#[test]
fn a_folder_wins_over_default() {
    let facts =
        with_folders(vec![folder("_default", OURS), folder("docker.io", "server = 'https://registry-1.docker.io'\n")]);
    let (finding, text) = problem(&facts);
    has(&text, &["for docker.io doesn't name the mirror", "wins over _default", "larder hosts apply"]);
    assert_eq!(finding.place.as_deref(), Some("/etc/containerd/certs.d/docker.io/hosts.toml"));
    let mut facts = with_folders(vec![folder("_default", OURS)]);
    facts.roots[0].folders.as_mut().unwrap().push(Folder { name: "ghcr.io".to_owned(), file: HostsFile::Absent });
    has(&problem(&facts).1, &["ghcr.io has no hosts.toml"]);
}

#[test]
fn entries_for_some_registries_only() {
    let mut facts = with_folders(vec![folder("reg.corp:5000", OURS), folder("quay.io", "")]);
    facts.config.containerd.registries = vec![crate::config::HostsTarget::Registry("reg.corp:5000".parse().unwrap())];
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine, "{:#?}", all(&facts));
    // containerd tries this spelling first.
    facts.roots[0].folders.as_mut().unwrap().push(folder("reg.corp_5000_", ""));
    has(&problem(&facts).1, &["reg.corp_5000_"]);
    facts.roots[0].folders = Ok(vec![folder("quay.io", "")]);
    has(&problem(&facts).1, &["there is no entry for reg.corp:5000"]);
}

#[test]
fn no_entry_at_all() {
    has(&problem(&with_folders(Vec::new())).1, &["no entry for _default", "larder hosts apply"]);
    let mut facts = sound();
    facts.roots[0].folders = Err(Unlisted::Missing);
    has(&problem(&facts).1, &["/etc/containerd/certs.d doesn't exist"]);
    facts.roots[0].folders = Err(Unlisted::Unreadable("permission denied".to_owned()));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
}

#[test]
fn malformed_hosts() {
    let (finding, text) = problem(&with_folders(vec![folder("_default", "a = 1\n[host"), folder("a.b", OURS)]));
    has(&text, &["is no TOML", "without any mirror"]);
    assert_eq!(finding.place.as_deref(), Some("/etc/containerd/certs.d/_default/hosts.toml:2"));
}

#[test]
fn entries_of_ours_that_do_not_work() {
    for (text, said) in [
        (OURS.replace("'pull', ", ""), "lacks a capability"),
        (OURS.replace("ca = 'larder-ca.pem'", ""), "https:// without ca"),
        ("host = {'http://127.0.0.1:7439' = {}}".to_owned(), "no table header"),
    ] {
        has(&problem(&with_folders(vec![folder("_default", &text)])).1, &[said]);
    }
    let plain = OURS.replace("https:", "http:").replace("ca = 'larder-ca.pem'", "skip_verify = true");
    has(&note(&with_folders(vec![folder("_default", &plain)])), &["http:// with ca or skip_verify"]);
    let second = format!("[host.'https://other']\n{OURS}");
    has(&note(&with_folders(vec![folder("_default", &second)])), &["asks https://other before the mirror"]);
    // Another port is another mirror; localhost is ours.
    has(
        &problem(&with_folders(vec![folder("_default", &OURS.replace("7439", "7440"))])).1,
        &["doesn't name the mirror"],
    );
    let local = with_folders(vec![folder("_default", &OURS.replace("127.0.0.1", "localhost"))]);
    assert_eq!(Outcome::of(&all(&local)), Outcome::Fine);
}

#[test]
fn a_missing_authority_fails_every_pull() {
    let mut facts = sound();
    let path = facts.authorities.keys().next().unwrap().clone();
    facts.authorities.insert(path.clone(), Authority::Missing);
    let (finding, text) = problem(&facts);
    has(&text, &["doesn't exist", "every pull", "larder hosts apply"]);
    assert_eq!(finding.place.as_deref(), Some("/etc/containerd/certs.d/_default/hosts.toml:1"));
    facts.authorities.insert(path, Authority::NotPem);
    has(&problem(&facts).1, &["has no certificate"]);
}

#[test]
fn referrers_before_2_2() {
    let mut facts = with_folders(vec![folder("_default", &OURS.replace("'resolve'", "'resolve', 'referrers'"))]);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    runs(&mut facts, "2.1.9", SOUND);
    has(&problem(&facts).1, &["referrers", "[\"pull\", \"resolve\"]"]);
}

#[test]
fn dial_timeout_on_2_0() {
    let mut facts = with_folders(vec![folder("_default", "[host.'http://127.0.0.1:7439']\ndial_timeout = '1s'")]);
    runs(&mut facts, "2.0.9", SOUND);
    assert!(all(&facts).iter().any(|f| f.what.contains("dial_timeout") && f.severity == Severity::Note));
}

#[test]
fn an_earlier_folder_of_the_list() {
    let mut facts = sound();
    runs(
        &mut facts,
        "1.7.24",
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/first:/etc/containerd/certs.d'",
    );
    facts.roots.insert(0, Root { path: "/first".into(), folders: Ok(vec![folder("_default", "")]) });
    has(
        &problem(&facts).1,
        &["for everything containerd looks into /first first", "mv /first/_default /etc/containerd/certs.d/"],
    );
    facts.roots[0].folders = Err(Unlisted::Missing);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
}

#[test]
fn a_proxy_catches_the_mirror() {
    let mut facts = sound();
    facts.runtime.environment =
        Some(Proxies { https: Some("http://p:3128".to_owned()), http: None, no: Some(".corp".to_owned()) });
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    facts.config.mirror.listen = "10.0.0.5:7439".parse().unwrap();
    facts.roots[0].folders = Ok(vec![folder("_default", &OURS.replace("127.0.0.1", "10.0.0.5"))]);
    has(&problem(&facts).1, &["http://p:3128", "Environment=\"NO_PROXY=.corp,10.0.0.5\""]);
}

#[test]
fn the_port() {
    let mut facts = sound();
    facts.port[0].process = Some((9, "nginx".to_owned()));
    has(&problem(&facts).1, &["nginx (process 9) listens on 127.0.0.1:7439", "listen = \"127.0.0.1:7449\""]);
    facts.port.clear();
    has(&problem(&facts).1, &["nobody listens on 127.0.0.1:7439", "hostNetwork"]);
}

#[test]
fn the_disk() {
    let mut facts = sound();
    let disk = facts.disk.as_mut().unwrap();
    (disk.used_percent, disk.shared) = (80, Some(true));
    has(&note(&facts), &["80 % used", "max_disk_percent = 75"]);
    facts.disk.as_mut().unwrap().available = 1 << 20;
    has(&problem(&facts).1, &["nothing can be kept"]);
    let mut facts = sound();
    facts.disk.as_mut().unwrap().shared = Some(false);
    has(&note(&facts), &["different filesystems", "dir = \\\"/var/lib/containerd/larder\\\""]);
    facts.disk = None;
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
}

#[test]
fn the_clock() {
    let mut facts = sound();
    let valid = |from, until| Authority::Valid { from: NOW + from, until: NOW + until };
    let path = facts.authorities.keys().next().unwrap().clone();
    for (authority, said) in
        [(valid(3600, 7200), "later than the clock"), (valid(-7200, -3600), "was valid until 2027-01-15T07:00:00Z")]
    {
        facts.authorities.insert(path.clone(), authority);
        has(&problem(&facts).1, &[said]);
    }
    facts.authorities.insert(path, valid(-10, 3600));
    has(&note(&facts), &["only"]);
    facts.now = 1000;
    assert!(
        all(&facts).iter().any(|f| f.check == "clock" && f.what.contains("1970") && f.severity == Severity::Problem)
    );
}

#[test]
fn each_distribution_in_its_own_way() {
    let list = SOUND.replace("certs.d'", "certs.d:/etc/docker/certs.d'");
    for (platform, parts) in [
        (Platform::Plain, &["systemctl restart containerd", "in place of /etc/containerd/config.toml:3"][..]),
        (Platform::K3s, &["{{ template", "systemctl restart k3s"]),
        (Platform::Rke2, &["{{ template", "rke2-server"]),
        (Platform::Microk8s, &["containerd-template.toml", "microk8s stop"]),
        (Platform::K0s, &["/etc/k0s/containerd.d/larder.toml", "version = 3", "k0sworker"]),
        (Platform::Eks, &["kind: NodeConfig", "config_path"]),
        (Platform::Kind, &["containerdConfigPatches", "config_path"]),
        (Platform::Talos, &["RegistryMirrorConfig", "http://127.0.0.1:7439"]),
        (Platform::Bottlerocket, &["settings.container-registry.mirrors", "http://127.0.0.1:7439"]),
        (Platform::Gke, &["registryHosts", "--containerd-config-from-file"]),
        (Platform::Aks, &["systemctl restart containerd"]),
        (Platform::Minikube, &["systemctl restart containerd"]),
    ] {
        let mut facts = sound();
        facts.platform = platform;
        configure(&mut facts, &list);
        has(&problem(&facts).1, parts);
    }
}

#[test]
fn a_configuration_in_another_place() {
    let mut facts = sound();
    facts.platform = Platform::K3s;
    facts.config.containerd.config = "/nowhere.toml".into();
    has(&note(&facts), &["k3s has it at", "config = \\\"/etc/containerd/config.toml\\\""]);
}
