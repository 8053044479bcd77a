//! The folder of folders: found, made, locked, and removed again if it was ours.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::compose::Source;
use super::disk;
use super::error::HostsError;
use super::folder::Folder;
use super::targets;

/// How long another process may hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Says that we made `hosts_dir` itself.
const MADE: &str = ".made-by-larder";

/// See [`Root::aside`].
const ASIDE: &str = ".larder-aside";

/// `hosts_dir`, locked against other processes of ours.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    _lock: File,
}

impl Root {
    /// The folder, if it is there.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, HostsError> {
        match lock(path)? {
            Some(lock) => Ok(Some(Self { path: path.to_owned(), _lock: lock })),
            None => Ok(None),
        }
    }

    /// Makes the folder if it isn't there; it appears with the note that we made it.
    pub(super) fn open_or_make(path: &Path) -> Result<Self, HostsError> {
        let missing = || HostsError::DanglingFolder { path: path.to_owned() };
        if let Some(root) = Self::open(path)? {
            return Ok(root);
        }
        if path.is_symlink() {
            return Err(missing());
        }
        let parent = parent(path);
        fs::create_dir_all(parent).map_err(|e| HostsError::io("making", parent, e))?;
        let _only_one_maker = lock(parent)?;
        if !disk::exists(path) {
            let aside = aside(path);
            disk::remove_dir(&aside)?;
            disk::make_dir(&aside)?;
            disk::replace(&aside.join(MADE), b"")?;
            disk::rename_new(&aside, path)?;
        }
        Self::open(path)?.ok_or_else(missing)
    }

    /// The names of the folders in it, and of links to nothing; not those that begin with a dot (a ConfigMap's `..data`).
    pub(super) fn names(&self) -> Result<BTreeSet<String>, HostsError> {
        names(&self.path)
    }

    pub(super) fn folder(&self, name: &str) -> Folder {
        Folder::new(self.path.join(name))
    }

    /// Where a folder is while it isn't whole. containerd looks for no such name.
    pub(super) fn aside(&self) -> PathBuf {
        self.path.join(ASIDE)
    }

    /// What `_default` says without us, for a folder beside it.
    pub(super) fn default_source(&self) -> Result<Source, HostsError> {
        let default = self.folder(targets::DEFAULT);
        if default.path().is_dir() { default.source("../_default/") } else { Ok(Source::default()) }
    }

    /// Removes what a crash may have left.
    pub(super) fn clear(&self) -> Result<(), HostsError> {
        disk::remove_dir(&self.aside())?;
        disk::remove(&disk::temporary(&self.path.join(MADE))).map(drop)
    }

    /// Removes the folder if we made it and nothing is left in it; whether it did.
    pub(super) fn remove_if_made(&self) -> Result<bool, HostsError> {
        let made = self.path.join(MADE);
        if !disk::exists(&made) {
            return Ok(false);
        }
        let left =
            || fs::read_dir(&self.path).map(Iterator::count).map_err(|e| HostsError::io("reading", &self.path, e));
        if left()? > 1 {
            // Others use it now.
            disk::remove(&made)?;
            return Ok(false);
        }
        let _only_one_maker = lock(parent(&self.path))?;
        let aside = aside(&self.path);
        disk::remove_dir(&aside)?;
        match disk::rename_new(&self.path, &aside) {
            Ok(()) => {}
            // Mounted here, it stays.
            Err(HostsError::MountPoint { .. }) => return disk::remove(&made).map(|_| false),
            Err(e) => return Err(e),
        }
        disk::remove_dir(&aside)?;
        Ok(true)
    }
}

/// What of ours stands in the folder itself, and beside it.
pub(super) fn traces(path: &Path) -> Vec<PathBuf> {
    let made = path.join(MADE);
    let traces = [disk::temporary(&made), made, path.join(ASIDE), aside(path)];
    traces.into_iter().filter(|path| disk::exists(path)).collect()
}

/// Removes what a crash may have left beside a folder that isn't there.
pub(super) fn clear_beside(path: &Path) -> Result<(), HostsError> {
    disk::remove_dir(&aside(path))
}

/// See [`Root::names`].
pub(super) fn names(path: &Path) -> Result<BTreeSet<String>, HostsError> {
    let failed = |e| HostsError::io("reading", path, e);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_folder = match fs::metadata(entry.path()) {
            Ok(about) => about.is_dir(),
            Err(_) => entry.path().is_symlink(),
        };
        let name = entry.file_name().into_string().ok().filter(|name| is_folder && !name.starts_with('.'));
        names.extend(name);
    }
    Ok(names)
}

fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.larder-aside"))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Holds a folder until the file is dropped; `None` if the folder isn't there.
fn lock(path: &Path) -> Result<Option<File>, HostsError> {
    let failed = |e| HostsError::io("locking", path, e);
    let until = Instant::now() + LOCK_WAIT;
    loop {
        let folder = match File::open(path) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        match folder.try_lock() {
            Ok(()) => {
                let held = folder.metadata().map_err(failed)?;
                // The holder before us may have removed the folder, or another may stand in its place.
                if fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
                    return Ok(Some(folder));
                }
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        if Instant::now() >= until {
            return Err(HostsError::Locked { path: path.to_owned() });
        }
        thread::sleep(Duration::from_millis(20));
    }
}
