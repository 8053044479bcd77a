use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disk::Disk;
use crate::image::Digest;

/// The algorithms that have a folder below `blobs/`.
pub(super) const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

/// How the names below `ingest/` begin that stand for bytes of containerd's.
pub(super) const ADOPTING: &str = "adopt-";

/// Where everything is below the store's folder.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// The file at `path` itself: a symbolic link is not followed.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        path.symlink_metadata().map(|metadata| Self::of(&metadata))
    }
}

impl Layout {
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn all_blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn blobs(&self, algorithm: &str) -> PathBuf {
        self.all_blobs().join(algorithm)
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(digest.hex())
    }

    pub(super) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    /// A name for what is being adopted by the process `run`.
    pub(super) fn adopting(&self, run: u64, number: u64) -> PathBuf {
        self.ingest().join(format!("{ADOPTING}{run:016x}-{number}.tmp"))
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    pub(super) fn secret(&self) -> PathBuf {
        self.root.join("private.key")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Makes what is missing of the folders, and brings them to the disk, so that an fsync of `blobs/<algorithm>`
    /// is enough later on.
    pub(super) fn make(&self, disk: &dyn Disk) -> io::Result<()> {
        if !self.root.is_dir() {
            if let Some(parent) = self.root.parent() {
                std::fs::create_dir_all(parent)?;
            }
            disk.create_dir(&self.root)?;
            if let Some(parent) = self.root.parent() {
                // The parent may be a folder that we can't even read; its entry for us is no loss then.
                let _ = disk.sync_dir(parent);
            }
        }
        let below = [self.all_blobs(), self.ingest(), self.trash()];
        let made = below.iter().chain(&ALGORITHMS.map(|name| self.blobs(name))).try_fold(false, |made, dir| {
            if dir.is_dir() {
                return Ok(made);
            }
            disk.create_dir(dir).map(|()| true)
        })?;
        if made {
            disk.sync_dir(&self.all_blobs())?;
            disk.sync_dir(&self.root)?;
        }
        Ok(())
    }

    /// Opens a blob's file in the store for reading. `None` where there is no regular file.
    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<Option<(File, Metadata)>> {
        open_regular(&self.blob(digest))
    }
}

/// Opens a file for reading. `None` where there is no regular file: a link could lead out of its folder, a pipe would
/// hang.
pub(super) fn open_regular(path: &Path) -> io::Result<Option<(File, Metadata)>> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// The digest that a file below `blobs/<algorithm>/` is named for.
pub(super) fn digest_of(algorithm: &str, name: &str) -> Option<Digest> {
    format!("{algorithm}:{name}").parse().ok()
}
