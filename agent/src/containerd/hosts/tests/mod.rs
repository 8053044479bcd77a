//! The whole room on real folders.

mod adopting;
mod composing;
mod crashes;
mod files;
mod mounts;
mod watching;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::reading::Reading;
use super::{Applied, Entry, HostsDir, Outcome};
use crate::config::HostsTarget;

const URL: &str = "https://127.0.0.1:7439";
const OURS: &str = "hosts.toml";
const KEPT: &str = "hosts.toml.before-larder";
const CA: &str = "larder-ca.pem";

/// A `certs.d` in a folder of its own.
struct Certs {
    dir: PathBuf,
    _temporary: tempfile::TempDir,
}

/// Everything below a folder: kind, mode and content by path.
type Tree = BTreeMap<String, String>;

impl Certs {
    /// Nothing there, not even `certs.d`.
    fn missing() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        Self { dir: temporary.path().join("certs.d"), _temporary: temporary }
    }

    /// With these files: `name` → text; a name with ` -> ` is a link, one that ends with `/` a folder.
    fn with(files: &[(&str, &str)]) -> Self {
        let certs = Self::missing();
        fs::create_dir(&certs.dir).unwrap();
        for (name, text) in files {
            certs.put(name, text.as_bytes());
        }
        certs
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let (name, target) = name.split_once(" -> ").map_or((name, None), |(name, target)| (name, Some(target)));
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match target {
            Some(target) => symlink(target, path).unwrap(),
            None if name.ends_with('/') => fs::create_dir_all(path).unwrap(),
            None => {
                fs::write(&path, bytes).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            }
        }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn has(&self, name: &str) -> bool {
        self.dir.join(name).symlink_metadata().is_ok()
    }

    fn hosts(&self, targets: &[&str]) -> HostsDir {
        HostsDir::new(self.dir.clone(), targets.iter().map(|t| target(t)).collect(), None).unwrap()
    }

    fn apply(&self, targets: &[&str]) -> Applied {
        self.hosts(targets).apply(&entry()).unwrap()
    }

    fn restore(&self) {
        for folder in HostsDir::restore(&self.dir).unwrap().folders {
            folder.outcome.unwrap();
        }
    }

    /// All that is there, the folder above included: what is left beside `certs.d` is seen too.
    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        walk(self.dir.parent().unwrap(), Path::new(""), &mut tree);
        tree
    }

    /// The hosts of a folder as containerd reads them; and our CA is there if it is named.
    fn read(&self, folder: &str) -> Vec<String> {
        let text = self.text(&format!("{folder}/hosts.toml"));
        let reading = Reading::of(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        for host in &reading.hosts {
            if host.fields.get("ca").and_then(toml::Value::as_str) == Some(CA) {
                assert!(self.dir.join(folder).join(CA).exists(), "{folder} lacks our CA: {text}");
            }
        }
        let server = reading.server().map(str::to_owned);
        reading.hosts.into_iter().map(|h| h.url).chain(server).collect()
    }
}

fn target(name: &str) -> HostsTarget {
    if name == "_default" { HostsTarget::Default } else { HostsTarget::Registry(name.parse().unwrap()) }
}

fn walk(root: &Path, below: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let path = below.join(entry.unwrap().file_name());
        let about = root.join(&path).symlink_metadata().unwrap();
        let mode = about.permissions().mode() & 0o7777;
        let name = path.display().to_string();
        if about.is_symlink() {
            tree.insert(name, format!("-> {}", fs::read_link(root.join(&path)).unwrap().display()));
        } else if about.is_dir() {
            tree.insert(name, format!("folder {mode:o}"));
            walk(root, &path, tree);
        } else {
            let bytes = fs::read(root.join(&path)).unwrap();
            tree.insert(name, format!("{mode:o} {:?}", bytes.escape_ascii().to_string()));
        }
    }
}

/// A CA as the agent makes them; the same one for the whole run.
fn ca_pem() -> String {
    static PEM: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| rcgen::generate_simple_self_signed(vec!["larder".to_owned()]).unwrap().cert.pem());
    PEM.clone()
}

fn entry() -> Entry {
    Entry { listen: "127.0.0.1:7439".parse().unwrap(), ca_pem: Some(ca_pem()), reader: None }
}

fn plain() -> Entry {
    Entry { ca_pem: None, ..entry() }
}

fn outcomes(applied: &Applied) -> Vec<(&str, Outcome)> {
    applied.folders.iter().map(|f| (f.name.as_str(), *f.outcome.as_ref().unwrap())).collect()
}
