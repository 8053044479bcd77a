use crate::cli::doctor::facts::{Authority, Facts};
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::cli::doctor::{Agent, AgentView};

const CHECK: &str = "peers";
/// Time enough to rotate it in all of a cluster.
const SOON: i64 = 30 * 24 * 3600;

/// Whether the cluster's authority is there and valid, and the agent a part of the cluster; nothing where there are no
/// peers.
pub(super) fn peers(facts: &Facts) -> Vec<Finding> {
    let (Some(path), Some(authority)) = (&facts.config.peers.ca, &facts.peers_ca) else { return Vec::new() };
    let make = match facts.surroundings.is_pod {
        true => Mend::run("larder certs --kubernetes | kubectl apply -f -"),
        false => Mend::new(
            "make it once for all nodes (see larder certs --help), or take ca out of [peers]",
            ["larder certs"],
        ),
    };
    let rotate = Mend::new("make another, and trust both for a while", ["larder certs --help"]);
    let time =
        |seconds: i64| jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string());
    let finding = |severity, what: String| Finding::new(CHECK, severity, what).at(&path.display());
    let apart = "each node fetches for itself";
    if let (Authority::Valid { .. }, Agent::Serving(AgentView { apart: Some(why), .. })) = (authority, &facts.agent) {
        let what = format!("the agent has no part in its cluster, and tries again every few seconds: {why}");
        return vec![finding(Severity::Problem, what).because(apart)];
    }
    vec![match authority {
        // The chart mounts a Secret that may not be there: then peers are off until it is.
        Authority::Missing => {
            finding(Severity::Note, "there is no certificate authority for peers: they are off".to_owned())
                .because(apart)
                .mended_by([make])
        }
        Authority::Unreadable(why) => {
            finding(Severity::Problem, format!("the certificate authority of peers can't be read: {why}"))
                .because(apart)
        }
        Authority::NotPem => {
            finding(Severity::Problem, "the certificate authority of peers is no certificate".to_owned())
                .because(apart)
                .mended_by([make])
        }
        Authority::Valid { from, .. } if facts.now < *from => {
            let what =
                format!("the certificate authority of peers is valid from {} on, later than the clock", time(*from));
            finding(Severity::Problem, what)
                .because(apart)
                .mended_by([Mend::new("set the clock", ["timedatectl set-ntp true"])])
        }
        Authority::Valid { until, .. } if facts.now > *until => {
            finding(Severity::Problem, format!("the certificate authority of peers was valid until {}", time(*until)))
                .because("no node believes another any more")
                .mended_by([rotate])
        }
        Authority::Valid { until, .. } if facts.now > *until - SOON => {
            finding(Severity::Note, format!("the certificate authority of peers is valid until {} only", time(*until)))
                .mended_by([rotate])
        }
        Authority::Valid { until, .. } => {
            finding(Severity::Ok, format!("the certificate authority of peers is valid until {}", time(*until)))
        }
    }]
}
