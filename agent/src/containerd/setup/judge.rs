use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{AllLoaded, Loaded};
use super::merge::{CRI, IMAGES, Merged, RUNTIME, merge, newest_format};
use super::tree::{Kind, Node};
use super::{ConfigPath, Fault, Legacy, Place, PullMode, Setup};
use crate::containerd::client::Version;

/// Where containerd looks from 2.2 on when nothing is said.
const DEFAULT_PATHS: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";
/// From here on an import's format may not be beyond the root file's.
const CHECKS_IMPORTS: Version = Version::new(2, 3, 0);

pub(super) fn judge(mut loaded: AllLoaded, format: i64, version: Version) -> Setup {
    let root = Arc::from(loaded.root.as_path());
    let Merged { tree, format: merged_format, replaced } = merge(&loaded.files, &root, version);
    if version >= CHECKS_IMPORTS {
        loaded.faults.extend(too_new(&loaded.files));
    }
    let newest = newest_format(version);
    if merged_format > newest && checks_format(version) {
        let file = loaded.files.iter().rev().find(|file| file.format == merged_format);
        let path = file.map_or(loaded.root.clone(), |file| file.path.to_path_buf());
        loaded.faults.push(Fault::FormatTooNew { path, version: merged_format, newest });
    }
    if merged_format >= 2 {
        loaded.faults.extend(short_names(&tree));
    }
    let empty = Node::empty(&root);
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

/// Imported files of a format beyond that of the first that names one.
fn too_new(files: &[Loaded]) -> impl Iterator<Item = Fault> {
    let root = files.iter().map(|file| file.format).find(|format| *format > 0).unwrap_or(0);
    let beyond = files.iter().filter(move |file| file.format > root);
    beyond.map(move |file| Fault::ImportTooNew { path: file.path.to_path_buf(), version: file.format, root })
}

/// Before 1.6.32, and 1.7 before 1.7.17, a format beyond the newest is let pass.
fn checks_format(version: Version) -> bool {
    version >= Version::new(1, 7, 17) || (Version::new(1, 6, 32)..Version::new(1, 7, 0)).contains(&version)
}

/// Plugins to be disabled by a name that only format 1 knows.
fn short_names(tree: &Node) -> Vec<Fault> {
    let Some(Kind::List(disabled)) = tree.at(&["disabled_plugins"]).map(|node| &node.kind) else { return Vec::new() };
    let short = disabled.iter().filter_map(|node| Some((node, node.text().filter(|name| !name.contains('.'))?)));
    short.map(|(node, name)| Fault::ShortName { place: node.place.clone(), name: name.to_owned() }).collect()
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
