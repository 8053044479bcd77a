use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::RealDisk;
use super::errors::OpenError;
use super::index::Index;
use super::layout::{ALGORITHMS, Layout, digest_of};
use super::lock::{Lock, Locking};
use super::secret::Secret;

/// A store's folder in which nobody works, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    _lock: Lock,
}

impl Hold {
    /// Takes the folder. `None`: there is none, or it can't be entered. Blocks for up to a second while another process
    /// holds it.
    ///
    /// # Errors
    /// When another process goes on holding it.
    pub fn take(dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = Layout::new(dir.to_owned()).lock();
        match Lock::take(&RealDisk, &path, dir) {
            Locking::Ours { lock, .. } => Ok(Some(Self { _lock: lock })),
            Locking::Taken => Err(OpenError::Locked { path }),
            Locking::Unreachable(_) => Ok(None),
        }
    }
}

/// Whether the lock of a store lies in the folder `dir`: it comes before all else, and goes last. Blocking.
#[must_use]
pub fn has_lock(dir: &Path) -> bool {
    Layout::new(dir.to_owned()).lock().symlink_metadata().is_ok()
}

/// What stores have made in the folder `dir`, in an order in which it can be removed: files, then the folders in which
/// they lie, the lock last. A folder is named even if others have put something there too.
///
/// # Errors
/// When a folder can't be read.
pub fn traces(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let layout = Layout::new(dir.to_owned());
    let mut traces = Vec::new();
    for algorithm in ALGORITHMS {
        let folder = layout.blobs(algorithm);
        // What isn't named by a digest was never looked at.
        let is_blob = |name: &str| digest_of(algorithm, name).is_some();
        traces.extend(files(&folder)?.into_iter().filter(|file| {
            let name = file.file_name().and_then(|name| name.to_str());
            name.is_some_and(is_blob)
        }));
        traces.push(folder);
    }
    traces.push(layout.all_blobs());
    for folder in [layout.ingest(), layout.trash()] {
        traces.extend(files(&folder)?);
        traces.push(folder);
    }
    let index = layout.index();
    traces.extend(Index::beside(&index));
    let secret = layout.secret();
    traces.extend([index, Secret::unnamed(&secret), secret, layout.lock()]);
    traces.retain(|path| path.symlink_metadata().is_ok());
    Ok(traces)
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(vec![]);
        }
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
