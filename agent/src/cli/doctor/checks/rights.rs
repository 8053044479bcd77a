use crate::cli::doctor::facts::{Facts, Need, Reach};
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::cli::doctor::mend;

const CHECK: &str = "rights";

/// Whether the agent gets at the folders that it needs.
pub(super) fn rights(facts: &Facts) -> Vec<Finding> {
    // What an ordinary user may do says nothing of the agent.
    if !facts.surroundings.is_root && !facts.surroundings.is_pod {
        return Vec::new();
    }
    let findings: Vec<_> = facts.needs.iter().filter_map(|need| lacking(facts, need)).collect();
    if !findings.is_empty() || facts.needs.is_empty() {
        return findings;
    }
    vec![Finding::new(CHECK, Severity::Ok, "the folders that the agent needs are within its reach")]
}

fn lacking(facts: &Facts, need: &Need) -> Option<Finding> {
    let path = need.path.display();
    let problem = |what: String| {
        Finding::new(CHECK, Severity::Problem, what).at(&path).because(format!("it is for {}", need.purpose))
    };
    match &need.reach {
        Reach::Granted => None,
        // Said by those who look for what is in it; a containerd that has pulled nothing yet has no content.
        Reach::Missing => None,
        Reach::Unmounted => {
            let preset = facts.platform.preset();
            Some(problem(format!("{path} of the host isn't mounted in this Pod")).mended_by([
                Mend::new(
                    "install with the preset of this distribution, which mounts what it takes",
                    [format!("helm upgrade larder … --set preset={preset}")],
                ),
                mend::mount(&need.path.join("any")),
            ]))
        }
        Reach::ReadOnly => {
            let how = match facts.surroundings.is_pod {
                true => "mount it without readOnly",
                false => {
                    "if the unit has ReadWritePaths, add it there; else mount it writable, or choose another folder"
                }
            };
            Some(problem(format!("{path} is read-only here")).mended_by([Mend::new(how, Vec::<String>::new())]))
        }
        Reach::Denied(owner) => {
            let what = format!("{path} can't be used, by rights; it belongs to user {owner}");
            let mend = match (facts.surroundings.is_pod, owner) {
                (true, 0) => Mend::new("the Pod has to run as root", ["securityContext:", "  runAsUser: 0"]),
                (true, _) => Mend::new(
                    "it takes capabilities: in the chart's values",
                    ["security:", "  capabilities: [CHOWN, DAC_OVERRIDE, FOWNER]"],
                ),
                (false, 0) => Mend::new("run the agent as root", Vec::<String>::new()),
                (false, _) => Mend::new(
                    "it takes capabilities: systemctl edit larder",
                    ["[Service]", "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER"],
                )
                .then("systemctl restart larder"),
            };
            Some(problem(what).mended_by([mend]))
        }
    }
}
