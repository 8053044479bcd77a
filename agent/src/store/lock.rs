use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::disk::Disk;
use super::layout::FileId;

/// How long to wait for a holder: a process that was just killed may hold the lock for a moment yet.
const PATIENCE: Duration = Duration::from_secs(1);
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// The store's folder is ours until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _flock: Flock<File>,
    path: PathBuf,
    file: FileId,
}

/// What became of the attempt to lock.
#[derive(Debug)]
pub(super) enum Locking {
    /// It is ours; whether the folder can be written to.
    Ours { lock: Lock, writable: bool },
    /// Another process has it.
    Taken,
    /// The folder can't even be opened.
    Unreachable(io::Error),
}

impl Lock {
    /// Locks the file at `path`, or the folder `dir` where no file can be made there.
    pub(super) fn take(disk: &dyn Disk, path: &Path, dir: &Path) -> Locking {
        let until = Instant::now() + PATIENCE;
        loop {
            let (file, path, writable) = match disk.open(path) {
                Ok(file) => (file, path, true),
                Err(why) => {
                    let full = why.kind() == io::ErrorKind::StorageFull;
                    match File::open(path).map(|file| (file, path)).or_else(|_| File::open(dir).map(|file| (file, dir)))
                    {
                        Ok((file, path)) => (file, path, full),
                        Err(error) => return Locking::Unreachable(error),
                    }
                }
            };
            let id = match file.metadata() {
                Ok(metadata) => FileId::of(&metadata),
                Err(error) => return Locking::Unreachable(error),
            };
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(flock) => {
                    let lock = Self { _flock: flock, path: path.to_owned(), file: id };
                    return Locking::Ours { lock, writable };
                }
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < until => thread::sleep(BETWEEN_TRIES),
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Locking::Taken,
                Err((_, errno)) => return Locking::Unreachable(errno.into()),
            }
        }
    }

    /// Whether the file that is locked is still the one at its path: a folder that was deleted and made again has
    /// another, which another process can lock.
    pub(super) fn is_in_place(&self) -> bool {
        FileId::at(&self.path).is_ok_and(|file| file == self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let Locking::Ours { lock, writable: true } = Lock::take(&RealDisk, &path, dir.path()) else { panic!() };
        assert!(matches!(Lock::take(&RealDisk, &path, dir.path()), Locking::Taken));
        assert!(lock.is_in_place());
        let waiting = thread::spawn({
            let (path, dir) = (path.clone(), dir.path().to_owned());
            move || matches!(Lock::take(&RealDisk, &path, &dir), Locking::Ours { .. })
        });
        drop(lock);
        assert!(waiting.join().unwrap(), "a dying holder is waited for");
        let Locking::Ours { lock, .. } = Lock::take(&RealDisk, &path, dir.path()) else { panic!() };
        std::fs::remove_file(&path).unwrap();
        assert!(!lock.is_in_place());
    }
}
