//! The machine around containerd: the port, the disk, the clock.

use std::net::SocketAddr;

use crate::cli::doctor::Agent;
use crate::cli::doctor::facts::{Authority, Facts, Listener};
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::config::Bytes;

/// Below this, kubelet is evicting Pods, and nothing is worth keeping.
const LITTLE: u64 = 1 << 30;
/// A certificate that ends so soon should have been renewed.
const SOON: i64 = 7 * 24 * 3600;
/// No clock is right that shows an earlier time than this: the start of 2025.
const NEVER_BEFORE: i64 = 1_735_689_600;
/// What the agent's process is called.
const OURS: &str = "larder";

/// Who has the mirror's port.
pub(super) fn port(facts: &Facts) -> Vec<Finding> {
    let listen = facts.config.mirror.listen;
    let by = |listener: &Listener| match &listener.process {
        Some((pid, name)) => format!("{name} (process {pid})"),
        None => "a process that can't be seen".to_owned(),
    };
    let foreign = |listener: &&Listener| listener.process.as_ref().is_some_and(|(_, name)| name != OURS);
    if let Some(listener) = facts.port.iter().find(foreign) {
        let what = format!("{} listens on {}, the mirror's port", by(listener), listener.address);
        let free = SocketAddr::new(listen.ip(), listen.port().checked_add(10).unwrap_or(17439));
        return vec![
            Finding::new("port", Severity::Problem, what)
                .because("containerd would ask it for images; ours can't start. kube-image-keeper has the same port")
                .mended_by([
                    Mend::new("stop it", Vec::<String>::new()),
                    Mend::new(
                        "take another port: write into larder.toml",
                        ["[mirror]".to_owned(), format!("listen = \"{free}\"")],
                    )
                    .then("systemctl restart larder"),
                ]),
        ];
    }
    match (facts.port.first(), &facts.agent) {
        (Some(listener), Agent::Serving(_) | Agent::Waiting { .. }) => {
            vec![Finding::new("port", Severity::Ok, format!("{} listens on {}", by(listener), listener.address))]
        }
        (Some(listener), Agent::Silent) => {
            let what = format!("{} listens on {}, but the agent doesn't answer", by(listener), listener.address);
            let waits = "an older agent that this one waits for, or another mirror of this node";
            let finding = Finding::new("port", Severity::Note, what);
            vec![if listener.process.is_none() { finding.because(waits) } else { finding }]
        }
        (None, _) if facts.is_port_open => vec![
            Finding::new("port", Severity::Problem, format!("somebody who has no socket here answers on {listen}"))
                .because("a Pod with this hostPort gets what containerd sends to the mirror; kube-image-keeper has 7439")
                .mended_by([Mend::new(
                    "find the Pod, and take it away",
                    [format!(
                        "kubectl get pods --all-namespaces --output \
                         custom-columns='NAMESPACE:.metadata.namespace,NAME:.metadata.name,PORTS:.spec.containers[*].ports[*].hostPort' \
                         | grep {}",
                        listen.port()
                    )],
                )]),
        ],
        (None, Agent::Serving(_)) => vec![
            Finding::new("port", Severity::Problem, format!("nobody listens on {listen}"))
                .because("the agent runs, but not with this configuration, or in another network")
                .mended_by([Mend::new("restart the agent; in Kubernetes its Pod needs", ["hostNetwork: true"])]),
        ],
        // That the agent is down, or waits, was said.
        (None, Agent::Silent | Agent::Waiting { .. }) => Vec::new(),
    }
}

/// Whether there is room, and whether it is shared with containerd.
pub(super) fn disk(facts: &Facts) -> Vec<Finding> {
    let dir = facts.config.cache.dir.display();
    let Some(disk) = &facts.disk else {
        return vec![Finding::new("disk", Severity::Unknown, format!("the disk of {dir} can't be looked at"))];
    };
    let limit = facts.config.cache.max_disk_percent;
    let what =
        format!("{dir}: {} of {} are free, {} % used", Bytes(disk.available), Bytes(disk.total), disk.used_percent);
    let finding = |severity| Finding::new("disk", severity, &what);
    let mut findings = vec![if disk.available < LITTLE {
        finding(Severity::Problem)
            .because("pulls go on, but nothing can be kept, and kubelet evicts Pods")
            .mended_by([Mend::run("crictl rmi --prune")])
    } else if disk.used_percent >= limit.value() {
        finding(Severity::Note)
            .because(format!("above max_disk_percent = {limit}: what containerd doesn't hold is given up first"))
    } else {
        finding(Severity::Ok)
    }];
    if disk.shared.is_none() && facts.runtime.release.is_ok() {
        let what = format!("containerd's {} isn't seen from here", facts.containerd_root.display());
        findings.push(
            Finding::new("disk", Severity::Note, what)
                .because("what containerd holds can't be linked, and is fetched once more"),
        );
    }
    if disk.shared == Some(false) {
        let root = facts.containerd_root.display();
        findings.push(
            Finding::new(
                "disk",
                Severity::Note,
                format!("{dir} and containerd's {root} are on different filesystems or mounts"),
            )
            .because("what containerd holds takes its space twice where it is cached")
            .mended_by([Mend::new(
                "write into larder.toml",
                ["[cache]".to_owned(), format!("dir = \"{root}/larder\"")],
            )]),
        );
    }
    findings
}

/// Whether certificates are valid by this machine's clock.
pub(super) fn clock(facts: &Facts) -> Vec<Finding> {
    let time =
        |seconds: i64| jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string());
    let set = Mend::new("set the clock", ["timedatectl set-ntp true"]);
    if facts.now < NEVER_BEFORE {
        return vec![
            Finding::new("clock", Severity::Problem, format!("the clock shows {}", time(facts.now)))
                .because("no certificate is valid then, the registries' neither")
                .mended_by([set]),
        ];
    }
    let judge = |(path, authority): (&std::path::PathBuf, &Authority)| {
        let Authority::Valid { from, until } = authority else { return None };
        let renew = Mend::new("restart the agent, which renews its own", ["systemctl restart larder"]);
        let (severity, what, mends) = match facts.now {
            now if now < *from => {
                let what = format!("is valid from {} on, later than the clock", time(*from));
                let right = "if the clock is right by now, restart the agent, which replaces its own";
                let renew = Mend::new(right, ["systemctl restart larder"]);
                (Severity::Problem, what, vec![set.clone(), renew])
            }
            now if now > *until => (Severity::Problem, format!("was valid until {}", time(*until)), vec![renew]),
            now if now > *until - SOON => {
                (Severity::Note, format!("is valid until {} only", time(*until)), vec![renew])
            }
            _ => return None,
        };
        let why = "containerd refuses what it signs, and passes that host by";
        Some(
            Finding::new("clock", severity, format!("the certificate {what}"))
                .at(&path.display())
                .because(why)
                .mended_by(mends),
        )
    };
    let findings: Vec<_> = facts.authorities.iter().filter_map(judge).collect();
    if !findings.is_empty() || facts.authorities.is_empty() {
        return findings;
    }
    vec![Finding::new("clock", Severity::Ok, "the certificates that hosts.toml names are valid by this clock")]
}
