use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

/// Everything that changes what is on the disk.
///
/// A seam for one purpose: tests record the order of these calls, and replay what a power loss can leave of them.
pub(super) trait Disk: Debug + Send + Sync {
    /// Makes a folder that only we can enter. One that is there already will do.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Opens a file for reading and writing, making it when missing.
    fn open(&self, path: &Path) -> io::Result<File>;
    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn set_len(&self, file: &File, len: u64) -> io::Result<()>;
    /// Brings a file's bytes and length to the disk.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Brings a folder's names to the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file another name, which must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a file at `to` that shares its extents with `from`; both can be changed without the other.
    fn reflink(&self, from: &File, to: &Path) -> io::Result<File>;
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Attaches a note to a file, that moves with it.
    fn set_label(&self, file: &File, label: &[u8]) -> io::Result<()>;
}

/// The name of the extended attribute that holds a blob's label.
pub(super) const LABEL: &str = "user.larder.label";

/// The machine's own disk.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn reflink(&self, from: &File, to: &Path) -> io::Result<File> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(to)?;
        match rustix::fs::ioctl_ficlone(&file, from) {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = fs::remove_file(to);
                Err(error.into())
            }
        }
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn set_label(&self, file: &File, label: &[u8]) -> io::Result<()> {
        rustix::fs::fsetxattr(file, LABEL, label, rustix::fs::XattrFlags::empty()).map_err(Into::into)
    }
}
