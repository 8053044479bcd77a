use std::time::Duration;

use crate::cli::doctor::Agent;
use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::containerd::canary::Verdict;

/// What the agent has proved, before anything is guessed from files.
pub(super) fn canary(facts: &Facts) -> Vec<Finding> {
    let agent = match &facts.agent {
        Agent::Serving(agent) => agent,
        Agent::Waiting { trouble } => return vec![waiting(trouble.as_deref())],
        Agent::Silent => return vec![silent(facts)],
    };
    let interval = facts.config.containerd.canary_interval.0;
    let Some(report) = &agent.canary else {
        return vec![if interval.is_zero() {
            Finding::new("canary", Severity::Note, "the canary is off (canary_interval = 0)")
                .because("only a pull that arrives proves that containerd comes to us")
        } else {
            Finding::new("canary", Severity::Unknown, "the agent's first canary pull hasn't ended yet")
        }];
    };
    let age = Duration::from_secs(u64::try_from(facts.now).unwrap_or(0).saturating_sub(report.at));
    let ago = format!("{} ago", humantime::format_duration(age));
    let mut findings = vec![match &report.verdict {
        Verdict::Used => Finding::new(
            "canary",
            Severity::Ok,
            format!(
                "containerd pulls through the mirror: it came for the canary {ago}, and for {} requests",
                agent.requests
            ),
        ),
        Verdict::Failing { pull_error } => Finding::new(
            "canary",
            Severity::Problem,
            format!("containerd came for the canary {ago}, but its pull failed"),
        )
        .because(pull_error),
        Verdict::Unused { pull_error } => {
            let seen = match agent.requests {
                0 => "no request of containerd has ever arrived since the agent started".to_owned(),
                n => format!("{n} requests have arrived since the agent started: some registries do come to it"),
            };
            Finding::new("canary", Severity::Problem, format!("containerd doesn't pull through the mirror ({ago})"))
                .because(format!("{pull_error}\n{seen}; what follows says why"))
        }
        Verdict::Unknown { reason } => {
            Finding::new("canary", Severity::Unknown, format!("the canary couldn't be pulled ({ago})")).because(reason)
        }
    }];
    if !interval.is_zero() && age > interval * 2 + Duration::from_secs(60) {
        let what = format!("the newest canary pull is older than canary_interval allows ({ago})");
        findings.push(Finding::new("canary", Severity::Note, what));
    }
    findings
}

/// Each agent of a node has a socket of its own while one takes over from the other.
fn waiting(trouble: Option<&str>) -> Finding {
    match trouble {
        None => Finding::new("canary", Severity::Unknown, "this agent waits to take over from the one that serves")
            .because("until that one ends, it alone can say whether containerd comes to it"),
        Some(why) => Finding::new("canary", Severity::Problem, format!("this agent doesn't serve yet: {why}")),
    }
}

fn silent(facts: &Facts) -> Finding {
    let what = format!("the agent doesn't answer at {}", facts.config.admin.socket.display());
    Finding::new("canary", Severity::Problem, what)
        .because("without it containerd pulls from the registries alone, and nobody can prove that it comes to us")
        .mended_by([
            Mend::run("systemctl start larder"),
            Mend::new(
                "in Kubernetes, see why its Pod isn't up",
                ["kubectl get pods --all-namespaces --selector app.kubernetes.io/name=larder --output wide"],
            ),
        ])
}
