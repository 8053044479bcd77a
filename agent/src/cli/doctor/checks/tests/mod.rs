//! Each wrong set-up, and what is said of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::cli::doctor::facts::{Authority, Disk, Folder, Listener, Need, Proxies, Reach, Root, Runtime, Unlisted};
use crate::cli::doctor::finding::{Outcome, Severity};
use crate::cli::doctor::hosts_file::HostsFile;
use crate::cli::doctor::platform::Platform;
use crate::cli::doctor::surroundings::{Mount, Surroundings};
use crate::cli::doctor::{Agent, AgentView};
use crate::config::Config;
use crate::containerd::canary::{Report, Verdict};
use crate::containerd::client::{ClientError, CriStatus, PluginState, Release};
use crate::containerd::setup::{Files, Setup};
use crate::upstream::{Authorities, AuthoritySource, Unreadable};

mod config;
mod hosts;
mod node;
mod pod;

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
pub(in crate::cli::doctor) fn sound() -> Facts {
    let mut facts = Facts {
        config: Config::default(),
        agent: view(Verdict::Used),
        platform: Platform::Plain,
        runtime: Runtime {
            release: release("2.3.4"),
            plugins: Some(vec![plugin(None)]),
            status: None,
            environment: None,
            config_argument: None,
            program: None,
        },
        setup_file: CONFIG.into(),
        containerd_root: "/var/lib/containerd".into(),
        setup: Setup::read(&RootFile(Ok(String::new())), Path::new(CONFIG), None),
        roots: vec![Root { path: CERTS.into(), folders: Ok(vec![folder("_default", OURS)]) }],
        authorities: BTreeMap::from([(
            PathBuf::from("/etc/containerd/certs.d/_default/larder-ca.pem"),
            Authority::Valid { from: NOW - 10, until: NOW + 365 * 86_400 },
        )]),
        port: vec![Listener { address: "127.0.0.1:7439".parse().unwrap(), process: Some((7, "larder".to_owned())) }],
        is_port_open: true,
        taken_ports: BTreeSet::from([7439]),
        disk: Some(Disk { total: 100 << 30, available: 60 << 30, used_percent: 40, shared: Some(true) }),
        surroundings: Surroundings { is_root: true, ..Surroundings::default() },
        needs: vec![need("/var/lib/larder", Reach::Granted)],
        selinux: None,
        trusted: Authorities {
            source: AuthoritySource::Host(vec!["/etc/ssl/certs/ca-certificates.crt".into()]),
            count: 142,
            unreadable: Vec::new(),
            is_by_variable: false,
        },
        agent_environment: Some(Proxies::default()),
        peers_ca: None,
        textfile: None,
        now: NOW,
    };
    configure(&mut facts, SOUND);
    facts
}

fn need(path: &str, reach: Reach) -> Need {
    Need { path: path.into(), purpose: "the cache", reach }
}

fn view(verdict: Verdict) -> Agent {
    let at = u64::try_from(NOW).unwrap() - 60;
    let report = Report { verdict, at, took: Duration::from_secs(1) };
    Agent::Serving(AgentView { canary: Some(report), requests: 12, left_out: Vec::new(), apart: None })
}

pub(in crate::cli::doctor) fn release(text: &str) -> Result<Release, ClientError> {
    Ok(Release { text: text.to_owned(), version: text.parse().ok() })
}

fn plugin(error: Option<&str>) -> PluginState {
    PluginState { uri: "io.containerd.cri.v1.images".to_owned(), error: error.map(str::to_owned) }
}

fn folder(name: &str, text: &str) -> Folder {
    Folder { name: name.to_owned(), file: HostsFile::parse(text, &Path::new(CERTS).join(name)) }
}

pub(in crate::cli::doctor) fn configure(facts: &mut Facts, text: &str) {
    facts.setup = Setup::read(&RootFile(Ok(text.to_owned())), Path::new(CONFIG), facts.version());
}

pub(in crate::cli::doctor) fn runs(facts: &mut Facts, version: &str, config: &str) {
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
    facts.agent = Agent::Silent;
    facts.port.clear();
    facts.is_port_open = false;
    has(&problem(&facts).1, &["/run/larder/larder.sock", "systemctl start larder", "kubectl"]);
}

#[test]
fn an_agent_waits_for_its_turn() {
    let mut facts = sound();
    facts.agent = Agent::Waiting { trouble: None };
    let found = all(&facts);
    assert_eq!(Outcome::of(&found), Outcome::Unchecked, "{found:#?}");
    assert_eq!(found[0].what, "this agent waits to take over from the one that serves");
    // The other one has the port.
    assert!(found.iter().any(|f| f.check == "port" && f.severity == Severity::Ok), "{found:#?}");
    facts.agent = Agent::Waiting { trouble: Some("another process holds the cache".to_owned()) };
    facts.port.clear();
    facts.is_port_open = false;
    has(&problem(&facts).1, &["this agent doesn't serve yet: another process holds the cache"]);
}

#[test]
fn the_canary_says() {
    let mut facts = sound();
    facts.agent = view(Verdict::Unused { pull_error: "no such host".to_owned() });
    has(&problem(&facts).1, &["doesn't pull through the mirror (1m ago)", "no such host", "12 requests"]);
    facts.agent = view(Verdict::Failing { pull_error: "no space left".to_owned() });
    has(&problem(&facts).1, &["its pull failed", "no space left"]);
    facts.agent = view(Verdict::Unknown { reason: "no socket".to_owned() });
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
    facts.agent = Agent::Serving(AgentView { canary: None, requests: 0, left_out: Vec::new(), apart: None });
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
