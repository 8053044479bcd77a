use std::path::Path;

use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::cli::doctor::mend;
use crate::upstream::{AuthoritySource, Unreadable};

const CHECK: &str = "authorities";

/// Which certificate authorities are believed: the host's, as by containerd, or those that are built in.
pub(super) fn authorities(facts: &Facts) -> Vec<Finding> {
    let trusted = &facts.trusted;
    let mut findings = vec![match &trusted.source {
        AuthoritySource::Host(_) => {
            let what = format!("{} certificate authorities are believed, from {}", trusted.count, trusted.source);
            Finding::new(CHECK, Severity::Ok, what)
        }
        AuthoritySource::Bundled => {
            // A link says better what has to be mounted.
            let is_known = trusted.unreadable.iter().any(|fault| fault.leads_to.is_some());
            let what = format!("Mozilla's {} certificate authorities are believed, which are built in", trusted.count);
            let mend = match facts.surroundings.is_pod {
                true => mend::mount(Path::new("/etc/ssl/certs/ca-certificates.crt")),
                false => Mend::new("install them: the package is called", ["ca-certificates"]),
            };
            let mend = Some(mend).filter(|_| !is_known);
            Finding::new(CHECK, Severity::Note, what)
                .because("the host's can't be read: a registry with a certificate of your own authority isn't believed")
                .mended_by(mend)
        }
    }];
    findings.extend(trusted.unreadable.iter().map(|fault| unreadable(facts, fault)));
    findings
}

fn unreadable(facts: &Facts, fault: &Unreadable) -> Finding {
    let by_variable = facts.trusted.is_by_variable;
    let severity = if by_variable { Severity::Problem } else { Severity::Note };
    let mut finding = Finding::new(CHECK, severity, format!("certificate authorities can't be read: {}", fault.reason))
        .at(&fault.path.display());
    if by_variable {
        finding = finding.because("SSL_CERT_FILE or SSL_CERT_DIR names it");
    }
    match &fault.leads_to {
        Some(target) if facts.surroundings.is_pod => finding.mended_by([mend::mount(whole(target))]),
        _ => finding,
    }
}

/// What to mount for a file: what lies below /etc/pki leads about there, so all of it.
fn whole(target: &Path) -> &Path {
    let any = Path::new("/etc/pki/any");
    if target.starts_with("/etc/pki") { any } else { target }
}
