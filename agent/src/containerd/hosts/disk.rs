//! Changes to the disk, each whole or not at all, and on the platter before the next one begins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::HostsError;

/// The most that is read of a file, in bytes.
const LIMIT: u64 = 4 << 20;

const EXCHANGE: RenameFlags = RenameFlags::EXCHANGE;

/// What a file's temporary name ends with. The name begins with a dot.
const TEMPORARY: &str = ".larder-tmp";

/// A file's bytes; `None` when nothing is there, or a link to nothing.
///
/// # Errors
/// Whatever is no regular file, or has more than 4 MiB.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, HostsError> {
    let failed = |e| HostsError::io("reading", path, e);
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    // Asked before opening: to open a pipe would wait for its other end.
    if !about.is_file() {
        return Err(HostsError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > LIMIT => Err(HostsError::TooLarge { path: path.to_owned(), limit: LIMIT }),
        Ok(_) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Whether a name is there, a link to nothing included.
pub(super) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Puts a file of mode 0644 in the place of whatever is there; containerd sees the old one or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), HostsError> {
    rename(&write_beside(path, bytes)?, path)
}

/// The same, but only in the place of a file that has the bytes `expected` (`None`: of nothing).
///
/// # Errors
/// [`HostsError::Changing`] when somebody was faster: then theirs stays. A filesystem that can't exchange two names
/// leaves them the moment between our last look and the rename.
pub(super) fn swap(path: &Path, bytes: &[u8], expected: Option<&[u8]>) -> Result<(), HostsError> {
    let beside = write_beside(path, bytes)?;
    if expected.is_none() {
        match step(path, "writing", || move_new(&beside, path)) {
            Ok(()) => return sync_parent(path),
            // A link to nothing, or somebody was faster.
            Err(HostsError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    let as_expected = |path: &Path| matches!(read(path), Ok(now) if now.as_deref() == expected);
    let exchange = || step(path, "replacing", || renameat_with(CWD, &beside, CWD, path, EXCHANGE).map_err(Into::into));
    let done = match exchange() {
        Ok(()) if as_expected(&beside) => true,
        Ok(()) => exchange().map(|()| false)?,
        Err(HostsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => false,
        Err(HostsError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidInput && as_expected(path) => {
            return rename(&beside, path);
        }
        Err(HostsError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => false,
        Err(e) => return Err(e),
    };
    sync_parent(path)?;
    remove(&beside)?;
    if done { Ok(()) } else { Err(HostsError::Changing { path: path.to_owned() }) }
}

/// A file's new bytes under its temporary name.
fn write_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf, HostsError> {
    let beside = temporary(path);
    remove(&beside)?;
    step(path, "writing", || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside)?;
        // The mode that counts, whatever the umask.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(bytes)?;
        file.sync_all()
    })?;
    Ok(beside)
}

/// Gives a file, or a symbolic link itself, a second name, in the place of what has that name now.
pub(super) fn link(from: &Path, to: &Path) -> Result<(), HostsError> {
    let beside = temporary(to);
    remove(&beside)?;
    step(from, "linking", || fs::hard_link(from, &beside).or_else(|e| copy(from, &beside).map_err(|_| e)))?;
    rename(&beside, to)?;
    // A rename between two names of one file does nothing.
    remove(&beside).map(drop)
}

/// Where hard links are not to be had: the same bytes, owner, mode and time.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let about = fs::symlink_metadata(from)?;
    if about.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
        return std::os::unix::fs::lchown(to, Some(about.uid()), Some(about.gid()));
    }
    fs::copy(from, to)?;
    std::os::unix::fs::chown(to, Some(about.uid()), Some(about.gid()))?;
    let file = OpenOptions::new().write(true).open(to)?;
    file.set_permissions(about.permissions())?;
    file.set_modified(about.modified()?)?;
    file.sync_all()
}

/// Moves a file into the place of another.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), HostsError> {
    step(to, "replacing", || fs::rename(from, to))?;
    sync_parent(to)
}

/// Moves a folder to a name that nothing has.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<(), HostsError> {
    step(to, "making", || move_new(from, to))?;
    sync_parent(to)
}

fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every filesystem knows the flag.
        Err(rustix::io::Errno::INVAL) if !exists(to) => fs::rename(from, to),
        other => other.map_err(Into::into),
    }
}

/// Removes a file or a link; whether there was one.
pub(super) fn remove(path: &Path) -> Result<bool, HostsError> {
    if !exists(path) {
        return Ok(false);
    }
    step(path, "removing", || match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    })?;
    sync_parent(path)?;
    Ok(true)
}

/// Makes a folder of mode 0755.
pub(super) fn make_dir(path: &Path) -> Result<(), HostsError> {
    step(path, "making", || {
        fs::DirBuilder::new().mode(0o755).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    })
}

/// Removes a folder of ours with all that is in it; nothing if there is none.
pub(super) fn remove_dir(path: &Path) -> Result<(), HostsError> {
    if !exists(path) {
        return Ok(());
    }
    step(path, "removing", || fs::remove_dir_all(path))?;
    sync_parent(path)
}

/// The name under which a file is written before it gets its own.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{TEMPORARY}"))
}

fn sync_parent(path: &Path) -> Result<(), HostsError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    step(folder, "syncing", || match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some filesystems can't sync a folder, and don't need it.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    })
}

/// One change that a crash can come before.
fn step<T>(path: &Path, doing: &'static str, change: impl FnOnce() -> io::Result<T>) -> Result<T, HostsError> {
    #[cfg(test)]
    fuse::burn().map_err(|e| HostsError::io("crashing at", path, e))?;
    change().map_err(|e| HostsError::io(doing, path, e))
}

/// Stops the disk after a number of changes, as a crash would, for the thread that lit it.
#[cfg(test)]
pub(super) mod fuse {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Runs `work` with a disk that dies after `steps` changes; whether it did.
    pub(in super::super) fn with(steps: usize, work: impl FnOnce()) -> bool {
        LEFT.set(Some(steps));
        work();
        LEFT.replace(None) == Some(0)
    }

    pub(super) fn burn() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the fuse has burnt")),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_takes_the_place_of_what_was_expected_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let swapped = |expected: Option<&[u8]>| match swap(&path, b"new", expected) {
            Ok(()) => true,
            Err(HostsError::Changing { .. }) => false,
            Err(e) => panic!("{e}"),
        };
        assert!(!swapped(Some(b"old")));
        assert!(!path.exists() && swapped(None));
        fs::write(&path, "theirs").unwrap();
        assert!(!swapped(None) && !swapped(Some(b"old")));
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert!(swapped(Some(b"theirs")));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(!swapped(Some(b"old")) && path.is_symlink());
        assert!(swapped(None) && !path.is_symlink());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!swapped(Some(b"old")) && path.is_dir());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
