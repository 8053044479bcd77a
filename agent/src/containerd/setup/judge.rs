use std::path::{Path, PathBuf};

use super::files::AllLoaded;
use super::merge::{CRI, IMAGES, Merged, RUNTIME, merge};
use super::tree::{Kind, Node};
use super::{ConfigPath, Fault, Legacy, Place, PullMode, Setup};
use crate::containerd::client::Version;

/// Where containerd looks from 2.2 on when nothing is said.
const DEFAULT_PATHS: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";
/// The format that each file needs before it can be imported by a root file of another.
const CHECKS_IMPORTS: Version = Version::new(2, 3, 0);

pub(super) fn judge(mut loaded: AllLoaded, format: i64, version: Version) -> Setup {
    let merged = merge(&loaded.files, version);
    if version >= CHECKS_IMPORTS {
        let too_new = loaded.files.iter().skip(1).filter(|file| file.format > format);
        loaded.faults.extend(too_new.map(|file| Fault::ImportTooNew {
            path: file.path.to_path_buf(),
            version: file.format,
            root: format,
        }));
    }
    let empty = Node::empty(&loaded.root.as_path().into());
    let (tree, replaced) = match merged {
        Some(Merged { tree, replaced }) => (tree, replaced),
        None => (empty.clone(), None),
    };
    let plugin = if version.major >= 2 { IMAGES } else { CRI };
    let section = tree.at(&["plugins", plugin]).unwrap_or(&empty);
    let legacy = legacy(section, version);
    let discard = match version.major {
        0..=1 => section.at(&["containerd", "discard_unpacked_layers"]),
        _ => section.at(&["discard_unpacked_layers"]),
    };
    Setup {
        files: loaded.files.iter().map(|file| file.path.clone()).collect(),
        faults: loaded.faults,
        format,
        config_path: config_path(section, &legacy, version),
        legacy,
        cri_disabled: cri_disabled(&tree),
        pull_mode: pull_mode(section, version),
        discard_unpacked_layers: discard.filter(|node| node.is(true)).map(|node| node.place.clone()),
        replaced,
        root: tree
            .at(&["root"])
            .and_then(Node::text)
            .filter(|text| !text.is_empty())
            .map_or_else(|| PathBuf::from("/var/lib/containerd"), |text| Path::new(text).to_owned()),
    }
}

fn config_path(section: &Node, legacy: &[Legacy], version: Version) -> Option<ConfigPath> {
    let written = section.at(&["registry", "config_path"]);
    match written.and_then(|node| Some((node.text()?, &node.place))) {
        Some((value, place)) if !value.is_empty() => {
            return Some(ConfigPath { value: value.to_owned(), place: Some(place.clone()) });
        }
        // 2.2.0 and 2.2.1 have the list compiled in, and an empty text takes it away.
        Some(_) if version < Version::new(2, 2, 2) => return None,
        _ => {}
    }
    let has_default = match version {
        v if v < Version::new(2, 2, 0) => false,
        v if v < Version::new(2, 2, 2) => true,
        _ => legacy.is_empty(),
    };
    has_default.then(|| ConfigPath { value: DEFAULT_PATHS.to_owned(), place: None })
}

/// What containerd refuses beside a `config_path`.
fn legacy(section: &Node, version: Version) -> Vec<Legacy> {
    let mirrors = section.at(&["registry", "mirrors"]).filter(|node| node.is_filled());
    let mut found: Vec<_> = mirrors.map(|node| entry("registry.mirrors", node)).into_iter().collect();
    if version.major < 2
        && let Some(configs) = section.at(&["registry", "configs"]).and_then(Node::table)
    {
        let tls = configs.iter().filter_map(|(name, config)| Some((name, config.at(&["tls"])?)));
        found.extend(tls.map(|(name, node)| entry(&format!("registry.configs.{name:?}.tls"), node)));
    }
    found
}

/// A key, and whether the value that it has keeps the transfer service out.
type LocalKey = (&'static str, fn(&Node) -> bool);

/// From 2.1 on the transfer service pulls, unless a key that it doesn't know is set.
fn pull_mode(section: &Node, version: Version) -> PullMode {
    if version < Version::new(2, 1, 0) {
        return PullMode::Local { because: None };
    }
    let keys: [LocalKey; 8] = [
        ("use_local_image_pull", |node| node.is(true)),
        ("disable_snapshot_annotations", |node| node.is(false)),
        ("discard_unpacked_layers", |node| node.is(true)),
        ("registry.mirrors", Node::is_filled),
        ("registry.configs", Node::is_filled),
        ("registry.auths", Node::is_filled),
        ("max_concurrent_downloads", |node| node.integer().is_some_and(|n| n != 3)),
        ("image_pull_with_sync_fs", |node| node.is(true)),
    ];
    let because = keys.iter().find_map(|(key, sets)| {
        let path: Vec<&str> = key.split('.').collect();
        section.at(&path).filter(|node| sets(node)).map(|node| entry(key, node))
    });
    match because {
        Some(because) => PullMode::Local { because: Some(because) },
        None => PullMode::Transfer,
    }
}

fn cri_disabled(tree: &Node) -> Option<Place> {
    let Kind::List(disabled) = &tree.at(&["disabled_plugins"])?.kind else { return None };
    let is_ours = |node: &&Node| node.text().is_some_and(|id| [CRI, IMAGES, RUNTIME].contains(&id));
    disabled.iter().find(is_ours).map(|node| node.place.clone())
}

fn entry(key: &str, node: &Node) -> Legacy {
    Legacy { key: key.to_owned(), place: node.place.clone() }
}
