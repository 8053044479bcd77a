//! containerd's configuration, read as containerd reads it: the root file, its imports, and what each version makes of
//! them. Nothing is written; the answers are for a person who wants to know why hosts.toml isn't used.
//!
//! The rules differ by version. Up to 1.7 an imported file replaces whole plugin sections; from 2.0 on it is merged
//! into them. Older formats are brought to the newer names: by 2.0 to 2.2 once everything is merged, if the last file is
//! of an older format, and from 2.3 on file by file.

#[cfg(test)]
mod fake;
mod files;
mod glob;
mod judge;
mod merge;
mod tree;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(test)]
pub(crate) use fake::InMemory;
pub use files::{Disk, Files};

use super::client::Version;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

/// What containerd's configuration comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The files that containerd reads, in its order, the root file first.
    pub files: Vec<Arc<Path>>,
    /// What containerd fails on, or stumbles over.
    pub faults: Vec<Fault>,
    /// The `version` of the root file; 1 where it has none.
    pub format: i64,
    /// The folders with hosts.toml files that are in effect. `None`: containerd reads no hosts.toml.
    pub config_path: Option<ConfigPath>,
    /// The older ways of naming mirrors, where they are in use: `registry.mirrors`, and up to 1.7 `configs.*.tls`.
    pub legacy: Vec<Legacy>,
    /// The entry of `disabled_plugins` that switches the runtime interface off.
    pub cri_disabled: Option<Place>,
    /// By which code images are pulled.
    pub pull_mode: PullMode,
    /// Whether layers are thrown away once they are unpacked, and where that is said.
    pub discard_unpacked_layers: Option<Place>,
    /// An imported file that replaced the section of an earlier one: the later and the earlier place. Up to 1.7.
    pub replaced: Option<(Place, Place)>,
    /// containerd's folder; its content store is below it.
    pub root: PathBuf,
}

/// The value of `config_path` in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigPath {
    /// As written: one folder, or several joined by colons.
    pub value: String,
    /// Where it is set. `None`: it is this version's own default.
    pub place: Option<Place>,
}

/// An older way of naming mirrors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy {
    /// `registry.mirrors` or `registry.configs.<registry>.tls`.
    pub key: String,
    /// Where it stands.
    pub place: Place,
}

/// Which of its two ways containerd pulls by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullMode {
    /// The transfer service, from 2.1 on: takes `config_path` as one folder, so that a colon list finds none.
    Transfer,
    /// The runtime plugin itself: splits `config_path` at its colons.
    Local {
        /// The key that brought it about; `None` where the version knows no other way.
        because: Option<Legacy>,
    },
}

/// What is wrong with the files themselves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no root file: containerd runs on its defaults.
    #[error("{} doesn't exist; containerd runs on its defaults", .0.display())]
    NoRootFile(PathBuf),
    /// A file can't be read by us; containerd may well be able to.
    #[error("{} can't be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file that is imported by name doesn't exist: containerd doesn't start.
    #[error("{place} imports {}, which doesn't exist; containerd doesn't start with it", path.display())]
    ImportMissing {
        /// The import.
        place: Place,
        /// What it names.
        path: PathBuf,
    },
    /// A file is no TOML: containerd doesn't start.
    #[error("{place} is no TOML ({message}); containerd doesn't start with it")]
    Malformed {
        /// Where the reader stopped.
        place: Place,
        /// What it said.
        message: String,
    },
    /// An imported file is of a newer format than the root file: from 2.3 on containerd doesn't start.
    #[error("{} has version = {version}, more than the root file's {root}; containerd 2.3 and later don't start with it", path.display())]
    ImportTooNew {
        /// The imported file.
        path: PathBuf,
        /// Its version.
        version: i64,
        /// The root file's version.
        root: i64,
    },
    /// The files are of a format that this version doesn't know: containerd doesn't start.
    #[error("{} has version = {version}, and this containerd knows {newest} at most; it doesn't start with it", path.display())]
    FormatTooNew {
        /// The file that decides.
        path: PathBuf,
        /// Its version.
        version: i64,
        /// The newest that is known.
        newest: i64,
    },
    /// A plugin is disabled by a name of format 1 in a file of a newer one: containerd doesn't start.
    #[error(
        "{place} disables {name:?}, which from version = 2 on has to be a full name such as io.containerd.grpc.v1.cri; containerd doesn't start with it"
    )]
    ShortName {
        /// The entry.
        place: Place,
        /// The name.
        name: String,
    },
    /// There are more files than anybody writes; the rest wasn't read.
    #[error("more than {} files are imported; the rest was not read", files::MAX_FILES)]
    TooManyFiles,
}

impl Setup {
    /// Reads `root` and what it imports, as containerd of this version would. Without a version, the root file's own
    /// format decides: 3 and up are read as by containerd 2.1, what is older as by 1.7.
    #[must_use]
    pub fn read(files: &impl Files, root: &Path, version: Option<Version>) -> Self {
        let loaded = files::load(files, root, version);
        let format = loaded.files.first().map_or(1, |file| file.format.max(1));
        let newest_sure = if format >= 3 { Version::new(2, 1, 9) } else { Version::new(1, 7, 24) };
        let version = version.unwrap_or(newest_sure);
        judge::judge(loaded, format, version)
    }

    /// Whether older keys stand beside a `config_path`: the runtime plugin refuses to load then.
    #[must_use]
    pub fn conflict(&self) -> Option<(&ConfigPath, &Legacy)> {
        Some((self.config_path.as_ref()?, self.legacy.first()?))
    }

    /// Whether `config_path` is a list where only one folder works, so that no hosts.toml is found.
    #[must_use]
    pub fn is_ignored_list(&self) -> bool {
        self.pull_mode == PullMode::Transfer && self.config_path.as_ref().is_some_and(|path| path.folders().count() > 1)
    }
}

impl ConfigPath {
    /// The folders in the order in which they are looked through (all but for the fault of the transfer service).
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.value.split(':').filter(|part| !part.is_empty()).map(Path::new)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

#[cfg(test)]
mod tests;
