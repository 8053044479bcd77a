use std::collections::BTreeMap;

use super::Place;
use super::files::Loaded;
use super::tree::{Kind, Node};
use crate::containerd::client::Version;

/// The runtime plugin up to 1.7, and its name in files of format 2.
pub(super) const CRI: &str = "io.containerd.grpc.v1.cri";
/// The half of it that pulls images, from 2.0 on.
pub(super) const IMAGES: &str = "io.containerd.cri.v1.images";
/// The other half.
pub(super) const RUNTIME: &str = "io.containerd.cri.v1.runtime";

/// All files as one tree, in which plugins have the names that this version of containerd looks for.
pub(super) struct Merged {
    pub(super) tree: Node,
    /// The section of the runtime plugin that replaced an earlier file's.
    pub(super) replaced: Option<(Place, Place)>,
}

pub(super) fn merge(files: &[Loaded], version: Version) -> Option<Merged> {
    let (first, rest) = files.split_first()?;
    let prepare = |file: &Loaded| if version.major >= 2 { migrated(file) } else { file.tree.clone() };
    let mut merged = Merged { tree: prepare(first), replaced: None };
    for file in rest {
        let tree = prepare(file);
        if version.major >= 2 {
            deep(&mut merged.tree, tree);
        } else {
            merged.replace_sections(tree);
        }
    }
    if version.major < 2 && merged.tree.at(&["version"]).and_then(Node::integer).unwrap_or(1) < 2 {
        rename_v1(&mut merged.tree);
    }
    Some(merged)
}

impl Merged {
    /// Up to 1.7: a plugin's section in a later file takes the place of the whole section before it.
    fn replace_sections(&mut self, mut later: Node) {
        let Some(table) = later.table_mut() else { return };
        let sections = table.remove("plugins");
        deep(&mut self.tree, later);
        let Some(sections) = sections else { return };
        let Some(root) = self.tree.table_mut() else { return };
        let Some(before) = root.get_mut("plugins").and_then(Node::table_mut) else {
            root.insert("plugins".to_owned(), sections);
            return;
        };
        let Kind::Table(sections) = sections.kind else { return };
        for (id, section) in sections {
            let place = section.place.clone();
            if let Some(old) = before.insert(id.clone(), section)
                && [CRI, "cri"].contains(&id.as_str())
            {
                self.replaced = Some((place, old.place));
            }
        }
    }
}

/// Later values win, tables are merged, and the lists of the root (imports, disabled plugins) add up.
fn deep(base: &mut Node, later: Node) {
    let Kind::Table(entries) = later.kind else { return };
    let Some(root) = base.table_mut() else { return };
    for (key, value) in entries {
        match (root.get_mut(&key).map(|old| &mut old.kind), value) {
            (Some(Kind::List(old)), Node { kind: Kind::List(new), .. }) => old.extend(new),
            (Some(Kind::Table(old)), Node { kind: Kind::Table(new), .. }) => tables(old, new),
            (_, value) => drop(root.insert(key, value)),
        }
    }
}

fn tables(base: &mut BTreeMap<String, Node>, later: BTreeMap<String, Node>) {
    for (key, value) in later {
        match (base.get_mut(&key).map(|old| &mut old.kind), value) {
            (Some(Kind::Table(old)), Node { kind: Kind::Table(new), .. }) => tables(old, new),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// From 2.0 on each file is brought to format 3 by itself, before anything is merged.
fn migrated(file: &Loaded) -> Node {
    let mut tree = file.tree.clone();
    if file.format < 2 {
        rename_v1(&mut tree);
    }
    if file.format >= 3 {
        return tree;
    }
    let Some(plugins) = tree.table_mut().and_then(|root| root.get_mut("plugins")).and_then(Node::table_mut) else {
        return tree;
    };
    let Some(cri) = plugins.get(CRI).cloned() else { return tree };
    let place = cri.place.clone();
    let images = plugins.entry(IMAGES.to_owned()).or_insert(Node { place, kind: Kind::Table(BTreeMap::new()) });
    let Some(images) = images.table_mut() else { return tree };
    for key in ["registry", "max_concurrent_downloads", "image_pull_with_sync_fs"] {
        images.extend(cri.at(&[key]).map(|value| (key.to_owned(), value.clone())));
    }
    // containerd's migration stops early where there is no `runtimes`, and loses these then.
    if cri.at(&["containerd", "runtimes"]).is_some() {
        for key in ["disable_snapshot_annotations", "discard_unpacked_layers"] {
            images.extend(cri.at(&["containerd", key]).map(|value| (key.to_owned(), value.clone())));
        }
    }
    tree
}

/// Format 1 calls plugins by their short names.
fn rename_v1(tree: &mut Node) {
    let Some(root) = tree.table_mut() else { return };
    if let Some(plugins) = root.get_mut("plugins").and_then(Node::table_mut)
        && let Some(cri) = plugins.remove("cri")
    {
        plugins.insert(CRI.to_owned(), cri);
    }
    if let Some(Node { kind: Kind::List(disabled), .. }) = root.get_mut("disabled_plugins") {
        for plugin in disabled {
            if plugin.text() == Some("cri") {
                plugin.kind = Kind::Text(CRI.to_owned());
            }
        }
    }
}
