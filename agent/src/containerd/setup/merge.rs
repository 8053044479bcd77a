use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

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

/// From here on each file is brought to the newest format before it is merged; before, all of it at once at the end.
const MIGRATES_EACH: Version = Version::new(2, 3, 0);

/// All files as one tree, in which plugins have the names that this version of containerd looks for.
pub(super) struct Merged {
    pub(super) tree: Node,
    /// The format that the whole is taken to be of, which the last file that names one decides. 0: none does.
    pub(super) format: i64,
    /// The section of the runtime plugin that replaced an earlier file's.
    pub(super) replaced: Option<(Place, Place)>,
}

/// The newest format that a version of containerd reads.
pub(super) fn newest_format(version: Version) -> i64 {
    match version {
        v if v < Version::new(2, 0, 0) => 2,
        v if v < MIGRATES_EACH => 3,
        _ => 4,
    }
}

pub(super) fn merge(files: &[Loaded], root: &Arc<Path>, version: Version) -> Merged {
    let mut merged = Merged { tree: Node::empty(root), format: 0, replaced: None };
    match version {
        v if v < Version::new(2, 0, 0) => merged.replace_then_rename(files),
        v if v < MIGRATES_EACH => merged.add_then_migrate(files, newest_format(v)),
        v => merged.migrate_then_add(files, newest_format(v)),
    }
    merged
}

impl Merged {
    /// Up to 1.7.
    fn replace_then_rename(&mut self, files: &[Loaded]) {
        for file in files {
            self.replace_sections(file.tree.clone());
            self.format = if file.format > 0 { file.format } else { self.format };
        }
        if self.format < 2 {
            rename_v1(&mut self.tree);
        }
    }

    /// 2.0 to 2.2. A file of format 1 gets its plugins' names of format 2, and then passes for one of the newest: what
    /// it says of the runtime interface is lost.
    fn add_then_migrate(&mut self, files: &[Loaded], newest: i64) {
        self.format = newest;
        for file in files {
            let mut tree = file.tree.clone();
            if file.format < 2 {
                rename_v1(&mut tree);
            } else {
                self.format = file.format;
            }
            deep(&mut self.tree, tree);
        }
        if self.format < newest {
            split_cri(&mut self.tree);
        }
    }

    /// From 2.3 on.
    fn migrate_then_add(&mut self, files: &[Loaded], newest: i64) {
        for file in files {
            let mut tree = file.tree.clone();
            if file.format < 2 {
                rename_v1(&mut tree);
            }
            if file.format < newest {
                split_cri(&mut tree);
            }
            deep(&mut self.tree, tree);
            self.format = self.format.max(file.format);
        }
        self.format = self.format.max(newest);
    }

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

/// Up to format 2 one plugin did what two do from 2.0 on; this is the part that pulls images.
fn split_cri(tree: &mut Node) {
    let Some(plugins) = tree.table_mut().and_then(|root| root.get_mut("plugins")).and_then(Node::table_mut) else {
        return;
    };
    let Some(cri) = plugins.get(CRI).cloned() else { return };
    let place = cri.place.clone();
    let images = plugins.entry(IMAGES.to_owned()).or_insert(Node { place, kind: Kind::Table(BTreeMap::new()) });
    let Some(images) = images.table_mut() else { return };
    for key in ["registry", "max_concurrent_downloads", "image_pull_with_sync_fs"] {
        images.extend(cri.at(&[key]).map(|value| (key.to_owned(), value.clone())));
    }
    // containerd's migration stops early where there is no `runtimes`, and loses these then.
    if cri.at(&["containerd", "runtimes"]).is_some() {
        for key in ["disable_snapshot_annotations", "discard_unpacked_layers"] {
            images.extend(cri.at(&["containerd", key]).map(|value| (key.to_owned(), value.clone())));
        }
    }
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
