//! Docker's certificate files in a folder, which containerd uses where no `hosts.toml` says anything.

use std::fs;
use std::path::Path;

use toml_edit::{Array, Value};

use super::error::HostsError;
use super::reading::Fields;

/// Names of certificate files, sorted, relative to the `hosts.toml` that is to name them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Certs {
    /// `*.crt`: CAs.
    authorities: Vec<String>,
    /// `*.cert` with their `*.key`, or with themselves where there is none: the key may be in the same file.
    clients: Vec<(String, String)>,
}

impl Certs {
    /// What the folder has. `prefix` goes before each name.
    pub(super) fn of(folder: &Path, prefix: &str) -> Result<Self, HostsError> {
        let failed = |e| HostsError::io("reading", folder, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // containerd skips folders, but not links to them. A name that is no text can't stand in a TOML file.
            if !entry.file_type().map_err(failed)?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        let mut certs = Self::default();
        for name in &names {
            if name.ends_with(".crt") {
                certs.authorities.push(format!("{prefix}{name}"));
            } else if let Some(stem) = name.strip_suffix(".cert") {
                let key = Some(format!("{stem}.key")).filter(|key| folder.join(key).exists());
                certs.clients.push((format!("{prefix}{name}"), format!("{prefix}{}", key.as_ref().unwrap_or(name))));
            }
        }
        Ok(certs)
    }

    /// The same as the fields of a host.
    pub(super) fn fields(&self) -> Fields {
        let clients = self.clients.iter().map(|(certificate, key)| [certificate.clone(), key.clone()]);
        Fields::with_certificates(self.authorities.clone(), clients.collect())
    }

    /// The same as root-level keys: they hold for the upstream. Empty when there are none.
    pub(super) fn as_keys(&self) -> String {
        let mut keys = String::new();
        if !self.authorities.is_empty() {
            keys += &format!("ca = {}\n", Value::from(self.authorities.iter().collect::<Array>()));
        }
        if !self.clients.is_empty() {
            let pairs = self.clients.iter().map(|(cert, key)| Value::from([cert, key].into_iter().collect::<Array>()));
            keys += &format!("client = {}\n", Value::from(pairs.collect::<Array>()));
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_become_keys() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.crt", "a.crt", "client.cert", "client.key", "both.cert", "larder-ca.pem", "it's.crt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("dir.crt")).unwrap();
        let keys = Certs::of(folder.path(), "../_default/").unwrap().as_keys();
        assert_eq!(
            keys.parse::<toml::Table>().unwrap(),
            toml::toml! {
                ca = ["../_default/a.crt", "../_default/b.crt", "../_default/it's.crt"]
                client = [["../_default/both.cert", "../_default/both.cert"], ["../_default/client.cert", "../_default/client.key"]]
            }
        );
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Certs::of(empty.path(), "").unwrap().as_keys(), "");
    }
}
