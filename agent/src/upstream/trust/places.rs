use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A file with all authorities, by distribution. The first that has any is taken. Go's programs, and so containerd, look
/// at the first six in this order; the others are older places, or where links lead to, for when only that folder is
/// mounted.
const BUNDLES: [&str; 9] = [
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Alpine, Flatcar, Talos
    "/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL, Amazon Linux, Bottlerocket
    "/etc/ssl/ca-bundle.pem",             // SUSE
    "/etc/pki/tls/cacert.pem",            // OpenELEC
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL: what ca-bundle.crt is a link to
    "/etc/ssl/cert.pem",                  // Alpine
    "/etc/ssl/certs/ca-certificates",     // Talos before 1.8
    "/var/lib/ca-certificates/ca-bundle.pem", // SUSE: what ca-bundle.pem is a link to
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem", // Arch: what ca-certificates.crt is a link to
];
/// Folders of single authorities, which count besides.
const FOLDERS: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];
/// Below which the host's folders may be mounted, so that they don't hide an image's. The first that has any is taken.
const ROOTS: [&str; 2] = ["/host", "/"];

/// Where to look for authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    /// What is the root for links there.
    pub(super) root: PathBuf,
    /// The first of them that has any is taken.
    pub(super) bundles: Vec<PathBuf>,
    /// Every file in them counts.
    pub(super) folders: Vec<PathBuf>,
    /// Whether a variable says so: what is missing then is a fault.
    pub(super) is_by_variable: bool,
}

/// What `SSL_CERT_FILE` and `SSL_CERT_DIR` (folders joined by colons) say, if one of them is set; else the known places.
/// The first search that finds an authority is the one.
pub(super) fn searches(variable: impl Fn(&str) -> Option<OsString>) -> Vec<Search> {
    let of = |name: &str| variable(name).filter(|value| !value.is_empty());
    let (file, folders) = (of("SSL_CERT_FILE"), of("SSL_CERT_DIR"));
    if file.is_none() && folders.is_none() {
        return ROOTS.iter().map(|root| known(Path::new(root))).collect();
    }
    let folders =
        folders.map(|list| std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect());
    vec![Search {
        root: "/".into(),
        bundles: file.map(PathBuf::from).into_iter().collect(),
        folders: folders.unwrap_or_default(),
        is_by_variable: true,
    }]
}

/// The known places below a root.
pub(super) fn known(root: &Path) -> Search {
    let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
    Search { root: root.to_owned(), bundles: paths(&BUNDLES), folders: paths(&FOLDERS), is_by_variable: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_go_first() {
        let with = |file: Option<&str>, folders: Option<&str>| {
            let (file, folders) = (file.map(OsString::from), folders.map(OsString::from));
            searches(move |name| if name == "SSL_CERT_FILE" { file.clone() } else { folders.clone() })
        };
        assert_eq!(with(None, Some("")).len(), 2);
        assert_eq!(with(None, None)[0], known(Path::new("/host")));
        let [search] = &with(Some("/a.pem"), Some("/b::/c"))[..] else { panic!() };
        assert_eq!((search.bundles.as_slice(), search.is_by_variable), ([PathBuf::from("/a.pem")].as_slice(), true));
        assert_eq!(search.folders, [Path::new("/b"), Path::new("/c")]);
    }
}
