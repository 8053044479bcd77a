//! Removing what Larder has made, and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Removed {
    /// How many files and folders have gone.
    pub(super) gone: usize,
    /// What lies in our folders and isn't ours: it stays, and so does the folder.
    pub(super) foreign: Vec<PathBuf>,
    /// What couldn't be removed.
    pub(super) failed: Vec<(PathBuf, io::Error)>,
}

impl Removed {
    /// Removes these, in this order.
    pub(super) fn all(&mut self, paths: &[PathBuf]) {
        for path in paths {
            let removed = match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir(path),
                Ok(_) => fs::remove_file(path),
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => self.gone += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => self.others_in(path),
                Err(error) => self.failed.push((path.clone(), error)),
            }
        }
    }

    /// Removes a folder that is ours if it is empty. One that is a mount of its own stays: whoever made the mount takes it
    /// away.
    pub(super) fn folder(&mut self, path: &Path) {
        match fs::remove_dir(path) {
            Ok(()) => self.gone += 1,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy | io::ErrorKind::NotADirectory => {}
                io::ErrorKind::DirectoryNotEmpty => self.others_in(path),
                _ => self.failed.push((path.to_owned(), error)),
            },
        }
    }

    fn others_in(&mut self, path: &Path) {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        // A folder of ours that stays is named by what is in it.
        let others =
            entries.map(|entry| entry.path()).filter(|entry| !self.foreign.iter().any(|f| f.starts_with(entry)));
        let others: Vec<_> = others.collect();
        self.foreign.extend(others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_put_there_stays_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("blobs/sha256")).unwrap();
        for name in ["blobs/sha256/aa", "blobs/sha256/mine", "lock"] {
            fs::write(at(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        let ours = ["blobs/sha256/aa", "blobs/sha256/gone", "blobs/sha256", "blobs", "link", "lock"].map(at);
        let mut removed = Removed::default();
        removed.all(&ours);
        removed.folder(dir.path());
        assert_eq!(removed.foreign, [at("blobs/sha256/mine")]);
        assert_eq!((removed.gone, removed.failed.len()), (3, 0));
        assert!(Path::new("/etc/passwd").exists() && !at("link").is_symlink());
        fs::remove_file(at("blobs/sha256/mine")).unwrap();
        let mut again = Removed::default();
        again.all(&ours);
        again.folder(dir.path());
        assert!(again.foreign.is_empty() && again.failed.is_empty() && !dir.path().exists());
    }

    #[test]
    fn what_cant_be_removed_is_said() {
        let mut removed = Removed::default();
        removed.all(&["/proc/self/stat".into()]);
        assert_eq!(removed.failed.len(), 1);
        removed.folder(Path::new("/proc"));
        assert_eq!((removed.gone, removed.failed.len()), (0, 1), "a mount stays, and that is no failure");
    }
}
