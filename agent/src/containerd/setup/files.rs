use std::collections::{HashSet, VecDeque};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::tree::{self, Node};
use super::{Fault, Place, glob};
use crate::containerd::client::Version;

/// More files than this are not read.
pub(super) const MAX_FILES: usize = 256;
/// Nor more bytes of one file.
const MAX_BYTES: u64 = 4 << 20;

/// Where files come from: the disk, or a test.
pub trait Files {
    /// The text of a file.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// The names in a folder; none where there is no such folder.
    fn names(&self, folder: &Path) -> Vec<String>;

    /// Whether there is something at this path.
    fn exists(&self, path: &Path) -> bool;
}

/// The files of this machine. Reading may block.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
        String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    fn names(&self, folder: &Path) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    fn exists(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }
}

/// A file where containerd runs under systemd, which is what old versions hold relative patterns against.
const WORKING_FILE: &str = "/config.toml";

/// One file, parsed.
pub(super) struct Loaded {
    pub(super) path: Arc<Path>,
    /// Its `version`; 0 where it has none.
    pub(super) format: i64,
    pub(super) tree: Node,
}

/// The root file and all imports, in the order in which containerd merges them.
pub(super) struct AllLoaded {
    pub(super) root: PathBuf,
    pub(super) files: Vec<Loaded>,
    pub(super) faults: Vec<Fault>,
}

pub(super) fn load(files: &impl Files, root: &Path, version: Option<Version>) -> AllLoaded {
    let mut all = AllLoaded { root: root.to_owned(), files: Vec::new(), faults: Vec::new() };
    let mut seen = HashSet::new();
    // With the place that asked for it, where it was asked for by name.
    let mut pending = VecDeque::from([(root.to_owned(), None::<Place>)]);
    while let Some((path, asked)) = pending.pop_front() {
        if !seen.insert(path.clone()) {
            continue;
        }
        if seen.len() > MAX_FILES {
            all.faults.push(Fault::TooManyFiles);
            break;
        }
        let text = match files.read(&path) {
            Ok(text) => text,
            Err(error) => {
                all.faults.push(unread(path, asked, root, &error));
                continue;
            }
        };
        let shared: Arc<Path> = path.as_path().into();
        match tree::parse(&text, &shared) {
            Ok(tree) => {
                for (import, place) in imports(&tree) {
                    let is_pattern = import.contains('*');
                    let parent = if is_pattern && holds_patterns_against_working_folder(version) {
                        Path::new(WORKING_FILE)
                    } else {
                        path.as_path()
                    };
                    let import = resolve(parent, &import);
                    if is_pattern {
                        pending.extend(glob::expand(files, &import).into_iter().map(|found| (found, None)));
                    } else {
                        pending.push_back((import, Some(place)));
                    }
                }
                let format = tree.at(&["version"]).and_then(Node::integer).unwrap_or(0);
                all.files.push(Loaded { path: shared, format, tree });
            }
            Err((line, message)) => {
                all.faults.push(Fault::Malformed { place: Place { file: shared, line }, message });
            }
        }
    }
    all
}

/// Before 1.6.29, and 1.7 before 1.7.16, a relative pattern isn't taken to be beside the file that has it.
fn holds_patterns_against_working_folder(version: Option<Version>) -> bool {
    version.is_some_and(|v| v < Version::new(1, 6, 29) || (Version::new(1, 7, 0)..Version::new(1, 7, 16)).contains(&v))
}

fn unread(path: PathBuf, asked: Option<Place>, root: &Path, error: &io::Error) -> Fault {
    match asked {
        Some(place) if error.kind() == io::ErrorKind::NotFound => Fault::ImportMissing { place, path },
        None if error.kind() == io::ErrorKind::NotFound && path == root => Fault::NoRootFile(path),
        _ => Fault::Unreadable { path, reason: error.to_string() },
    }
}

fn imports(tree: &Node) -> Vec<(String, Place)> {
    let Some(list) = tree.at(&["imports"]) else { return Vec::new() };
    list.texts().map(|text| (text.to_owned(), list.place.clone())).collect()
}

/// An import's path: below its parent's folder unless it is absolute, and tidied as Go's `filepath.Clean` does.
fn resolve(parent: &Path, import: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for component in parent.parent().unwrap_or(Path::new("/")).join(import).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if path.file_name().is_some() => {
                path.pop();
            }
            Component::ParentDir if path.has_root() => {}
            other => path.push(other),
        }
    }
    path
}
