use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Severity};
use crate::cli::doctor::{Agent, LeftOut};

/// Hosts of the user's own files that the running agent couldn't take over.
pub(super) fn left_out(facts: &Facts) -> Vec<Finding> {
    let Agent::Serving(agent) = &facts.agent else { return Vec::new() };
    let finding = |left: &LeftOut| {
        let finding = Finding::new("hosts", Severity::Note, format!("the agent doesn't ask {}", left.what))
            .at(&left.file.display());
        let seen = "what it names can't be used here; containerd asks that host as before, after us";
        let pod = "files that it names have to be mounted in the Pod, at their own paths (host.paths of the chart)";
        finding.because(if facts.surroundings.is_pod { format!("{seen}; {pod}") } else { seen.to_owned() })
    };
    agent.left_out.iter().map(finding).collect()
}
