//! In a Pod: what isn't mounted isn't seen, and is no fault of the host.

use super::*;
use crate::cli::doctor::LeftOut;
use crate::cli::doctor::facts::SeLinux;

/// A Pod of the DaemonSet on a sound node.
fn pod() -> Facts {
    let mut facts = sound();
    let mount =
        |at: &str, filesystem: &str| Mount { at: at.into(), filesystem: filesystem.to_owned(), options: String::new() };
    facts.surroundings = Surroundings {
        is_pod: true,
        is_root: true,
        mounts: vec![
            mount("/", "overlay"),
            mount("/etc/containerd", "ext4"),
            mount("/run/containerd", "tmpfs"),
            mount("/var/lib/containerd", "ext4"),
        ],
        kernel: String::new(),
    };
    facts
}

fn found(facts: &Facts, what: &str) -> Finding {
    let all = all(facts);
    all.iter().find(|f| f.what.contains(what)).unwrap_or_else(|| panic!("no {what:?} in {all:#?}")).clone()
}

#[test]
fn a_sound_pod() {
    let facts = pod();
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine, "{:#?}", all(&facts));
    let place = found(&facts, "this is a Pod");
    assert!(
        place.what.contains("/var/lib/containerd, /etc/containerd/certs.d, /etc/containerd/config.toml"),
        "{place:?}"
    );
    // Nothing is said of what can't be known, but how to find out.
    let proxies = found(&facts, "containerd's proxies aren't seen");
    assert_eq!((proxies.severity, proxies.mend[0].lines.len()), (Severity::Note, 1));
}

#[test]
fn files_that_are_not_mounted() {
    let mut facts = pod();
    let path = PathBuf::from("/etc/corp/tls/ca.pem");
    let text = format!("{OURS}[host.'https://mirror.corp']\nca = '{}'\n", path.display());
    facts.roots[0].folders = Ok(vec![folder("_default", &text)]);
    facts.authorities.insert(path, Authority::Missing);
    let finding = found(&facts, "isn't seen from this Pod");
    assert_eq!(finding.severity, Severity::Note);
    assert!(finding.mend[0].lines.contains(&"    - path: /etc/corp/tls".to_owned()), "{finding:?}");
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    // On the host it fails every pull.
    facts.surroundings.is_pod = false;
    has(&problem(&facts).1, &["doesn't exist", "every pull that reads this file fails"]);
    let mut facts = pod();
    let left_out = vec![LeftOut {
        file: "/etc/containerd/certs.d/docker.io/hosts.toml".into(),
        what: "https://mirror.corp: /etc/corp/client.pem can't be used: it isn't there".to_owned(),
    }];
    facts.agent = Agent::Serving(AgentView { canary: None, requests: 0, left_out, apart: None });
    let finding = found(&facts, "the agent doesn't ask https://mirror.corp");
    assert!(finding.severity == Severity::Note && finding.because_has("host.paths"), "{finding:?}");
}

#[test]
fn authorities_behind_links() {
    let mut facts = pod();
    facts.trusted.source = AuthoritySource::Bundled;
    facts.trusted.unreadable = vec![Unreadable {
        path: "/etc/ssl/certs".into(),
        reason: "its files are links to /etc/pki/ca-trust/x.pem, which isn't there".to_owned(),
        leads_to: Some("/etc/pki/ca-trust/x.pem".into()),
    }];
    let finding = found(&facts, "its files are links");
    assert!(finding.mend[0].lines.contains(&"    - path: /etc/pki".to_owned()), "{finding:?}");
    assert!(found(&facts, "which are built in").mend.is_empty());
}

#[test]
fn folders_out_of_reach() {
    let mut facts = pod();
    for (reach, said) in [
        (Reach::Unmounted, "isn't mounted in this Pod"),
        (Reach::ReadOnly, "is read-only here"),
        (Reach::Denied(0), "runAsUser: 0"),
        (Reach::Denied(1000), "capabilities: [CHOWN, DAC_OVERRIDE, FOWNER]"),
    ] {
        facts.needs = vec![need("/var/lib/containerd/larder", reach)];
        has(&problem(&facts).1, &[said, "/var/lib/containerd/larder"]);
    }
    facts.platform = Platform::K3s;
    facts.needs = vec![need("/var/lib/rancher/k3s/agent/containerd", Reach::Unmounted)];
    has(&problem(&facts).1, &["--set preset=k3s"]);
    facts.needs = vec![need("/var/lib/containerd/larder", Reach::Missing)];
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);

    let mut host = sound();
    host.surroundings.is_root = true;
    host.needs = vec![need("/etc/containerd/certs.d", Reach::Denied(1000))];
    has(&problem(&host).1, &["CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER", "systemctl edit larder"]);
}

#[test]
fn selinux_keeps_us_out() {
    let mut facts = pod();
    let label = |kind: &str, is_enforcing| {
        Some(SeLinux { context: format!("system_u:system_r:{kind}:s0:c1,c2"), is_enforcing })
    };
    facts.selinux = label("container_t", Some(true));
    has(&problem(&facts).1, &["runs as container_t", "is enforced", "spc_t", "enabled: true"]);
    facts.selinux = label("container_t", Some(false));
    assert_eq!(found(&facts, "isn't enforced").severity, Severity::Note);
    for kind in ["spc_t", "unconfined_service_t"] {
        facts.selinux = label(kind, Some(true));
        assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    }
}

#[test]
fn proxies_are_set_by_values() {
    let mut facts = pod();
    facts.runtime.environment = Some(crate::cli::doctor::facts::Environment {
        proxies: Proxies { https: Some("http://p:3128".to_owned()), http: None, no: None },
        files: Vec::new(),
    });
    has(&problem(&facts).1, &["env:", "- name: HTTPS_PROXY", "set env daemonset/larder HTTPS_PROXY='http://p:3128'"]);
}

impl Finding {
    fn because_has(&self, part: &str) -> bool {
        self.why.as_deref().is_some_and(|why| why.contains(part))
    }
}
