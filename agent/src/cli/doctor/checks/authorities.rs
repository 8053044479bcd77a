use std::path::Path;

use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::cli::doctor::mend;
use crate::upstream::AuthoritySource;

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
            let what = format!("Mozilla's {} certificate authorities are believed, which are built in", trusted.count);
            let mend = match facts.surroundings.is_pod {
                true => mend::mount(Path::new("/etc/ssl/certs/ca-certificates.crt")),
                false => Mend::new("install them: the package is called", ["ca-certificates"]),
            };
            Finding::new(CHECK, Severity::Note, what)
                .because("the host's can't be read: a registry with a certificate of your own authority isn't believed")
                .mended_by([mend])
        }
    }];
    findings.extend(trusted.unreadable.iter().map(|(path, why)| {
        let severity = if trusted.is_by_variable { Severity::Problem } else { Severity::Note };
        let finding = Finding::new(CHECK, severity, format!("certificate authorities can't be read: {why}"));
        let finding = finding.at(&path.display());
        match (trusted.is_by_variable, facts.surroundings.is_pod) {
            (true, _) => finding.because("SSL_CERT_FILE or SSL_CERT_DIR names it"),
            // On RHEL's kin /etc/ssl/certs is a link into /etc/pki.
            (false, true) => {
                finding.mended_by([mend::mount(Path::new(match path.starts_with("/etc/ssl/ca-bundle.pem") {
                    true => "/var/lib/ca-certificates/ca-bundle.pem",
                    false => "/etc/pki/ca-bundle.crt",
                }))])
            }
            (false, false) => finding,
        }
    }));
    findings
}
