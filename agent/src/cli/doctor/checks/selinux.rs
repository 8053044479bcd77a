use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Mend, Severity};

const CHECK: &str = "selinux";
/// The types of containers that are kept from the host's files.
const CONFINED: [&str; 4] = ["container_t", "container_init_t", "container_kvm_t", "svirt_lxc_net_t"];

/// Whether SELinux keeps the agent's container from the host's folders.
pub(super) fn selinux(facts: &Facts) -> Vec<Finding> {
    let Some(selinux) = &facts.selinux else { return Vec::new() };
    let kind = selinux.context.split(':').nth(2).unwrap_or_default();
    if !CONFINED.contains(&kind) {
        return Vec::new();
    }
    let (severity, mode) = match selinux.is_enforcing {
        Some(true) => (Severity::Problem, "is enforced"),
        Some(false) => (Severity::Note, "isn't enforced for the moment"),
        None => (Severity::Problem, "may be enforced"),
    };
    vec![
        Finding::new(CHECK, severity, format!("the agent runs as {kind}, and SELinux {mode}"))
            .because("a container of that type gets neither at containerd's folders nor at its socket")
            .mended_by([
                Mend::new("in the chart's values", ["security:", "  selinux:", "    enabled: true"]),
                Mend::new("without the chart", ["securityContext:", "  seLinuxOptions:", "    type: spc_t"]),
            ]),
    ]
}
