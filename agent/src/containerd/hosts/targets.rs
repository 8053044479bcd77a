//! Which folders an entry belongs in.

use std::collections::BTreeSet;

use crate::config::HostsTarget;
use crate::image::Registry;

/// The folder that containerd takes when a registry has none.
pub(super) const DEFAULT: &str = "_default";

/// The folders that are to have our entry, those that are missing included.
///
/// `_default` means itself and every registry's folder that exists, since that one would win over it. A registry means
/// the folder that containerd finds first, or one of its name.
pub(super) fn folders(existing: &BTreeSet<String>, targets: &[HostsTarget]) -> BTreeSet<String> {
    let mut folders = BTreeSet::new();
    for target in targets {
        match target {
            HostsTarget::Default => {
                folders.insert(DEFAULT.to_owned());
                folders.extend(existing.iter().filter(|name| is_looked_up(name)).cloned());
            }
            HostsTarget::Registry(registry) => {
                let [first, second] = names(registry.as_str());
                folders.insert(if existing.contains(&first) { first } else { second });
            }
        }
    }
    folders
}

/// Where containerd looks for a registry, in this order and before `_default`.
fn names(host: &str) -> [String; 2] {
    let first = match host.rfind(':') {
        Some(at) if at > 0 => format!("{}_{}_", &host[..at], &host[at + 1..]),
        _ => host.to_owned(),
    };
    [first, host.to_owned()]
}

/// Whether containerd could look for a folder of this name.
fn is_looked_up(name: &str) -> bool {
    name == DEFAULT || registry(name).is_some()
}

/// The registry that a folder's name means.
fn registry(name: &str) -> Option<Registry> {
    match name.strip_suffix('_').and_then(|rest| rest.rsplit_once('_')) {
        Some((host, port)) => format!("{host}:{port}").parse().ok(),
        None => name.parse().ok(),
    }
}

/// What containerd reads a folder for; `None` when it is no registry's, or the registry has one that comes before it.
pub(super) fn target(name: &str, existing: &BTreeSet<String>) -> Option<HostsTarget> {
    if name == DEFAULT {
        return Some(HostsTarget::Default);
    }
    let registry = registry(name)?;
    let [first, second] = names(registry.as_str());
    let read = if existing.contains(&first) { first } else { second };
    (name == read).then_some(HostsTarget::Registry(registry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(existing: &[&str], targets: &[&str]) -> Vec<String> {
        let existing = existing.iter().map(|&name| name.to_owned()).collect();
        let targets: Vec<_> = targets
            .iter()
            .map(|&t| if t == DEFAULT { HostsTarget::Default } else { HostsTarget::Registry(t.parse().unwrap()) })
            .collect();
        folders(&existing, &targets).into_iter().collect()
    }

    #[test]
    fn the_default_goes_into_every_registrys_folder() {
        assert_eq!(
            planned(&["docker.io", "reg.corp_5000_", "[::1]:5000", "[::1]_5000_", "lost+found", "a b"], &[DEFAULT]),
            ["[::1]:5000", "[::1]_5000_", "_default", "docker.io", "reg.corp_5000_"]
        );
        assert_eq!(planned(&[], &[DEFAULT]), ["_default"]);
    }

    #[test]
    fn a_registry_goes_where_containerd_looks_first() {
        assert_eq!(planned(&["a:1", "a_1_"], &["a:1"]), ["a_1_"]);
        assert_eq!(planned(&["a", "a:1"], &["a:1"]), ["a:1"]);
        assert_eq!(planned(&["a", "_default"], &["a:1", "docker.io"]), ["a:1", "docker.io"]);
        assert_eq!(planned(&["a"], &[]), Vec::<String>::new());
    }

    #[test]
    fn a_folder_is_read_for_the_registry_of_its_name() {
        let existing = ["a:1", "a_1_", "b:1", "_default", "registry-1.docker.io", "UP.er", "a b"];
        let existing: BTreeSet<String> = existing.into_iter().map(str::to_owned).collect();
        let registry = |name: &str| Some(HostsTarget::Registry(name.parse().unwrap()));
        assert_eq!(target("a_1_", &existing), registry("a:1"));
        assert_eq!(target("b:1", &existing), registry("b:1"));
        assert_eq!(target("_default", &existing), Some(HostsTarget::Default));
        for other in ["a:1", "registry-1.docker.io", "UP.er", "a b"] {
            assert_eq!(target(other, &existing), None, "{other}");
        }
    }
}
