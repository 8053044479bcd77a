//! inotify on `hosts_dir` and its folders.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::net::unix::pipe;

use super::root;

/// For some events at a time, in bytes; one takes at most 272.
const BUFFER: usize = 4096;

/// Tells that something happened; what, one has to look. Without inotify it never tells anything.
#[derive(Debug)]
pub(super) struct Sight {
    eyes: Option<Eyes>,
    watched: Mutex<HashMap<PathBuf, WatchDescriptor>>,
}

#[derive(Debug)]
struct Eyes {
    inotify: Inotify,
    /// A second descriptor of the same queue, to be told when it fills. Not a pipe, but read like one; of the runtime's
    /// types for a descriptor this is the one that takes any kind without unsafe code.
    queue: pipe::Receiver,
}

impl Eyes {
    fn open() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let queue = pipe::Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self { inotify, queue })
    }
}

impl Sight {
    /// Has to be called within the runtime.
    pub(super) fn open() -> Self {
        Self { eyes: Eyes::open().inspect_err(blind).ok(), watched: Mutex::default() }
    }

    /// Watches what is there now; whether anything is new to us.
    pub(super) fn follow(&self, dir: &Path) -> bool {
        let Some(Eyes { inotify, .. }) = &self.eyes else { return false };
        let inside = root::names(dir).unwrap_or_default().into_iter().map(|name| dir.join(name));
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut now = HashMap::new();
        for path in inside.chain([dir.to_owned()]) {
            match inotify.add_watch(&path, mask) {
                Ok(watch) => {
                    now.insert(path, watch);
                }
                Err(Errno::ENOSPC | Errno::ENOMEM) => {
                    blind(&Errno::ENOSPC.into());
                    break;
                }
                // Gone already, or a link to nothing.
                Err(_) => {}
            }
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for watch in watched.values().filter(|watch| !now.values().any(|kept| kept == *watch)) {
            // It fails for what was removed: that watch went with it.
            let _ = inotify.rm_watch(*watch);
        }
        let new = now.iter().any(|(path, watch)| watched.get(path) != Some(watch));
        *watched = now;
        new
    }

    /// Forgets what has happened so far.
    pub(super) fn drain(&self) {
        if let Some(Eyes { queue, .. }) = &self.eyes {
            while queue.try_read(&mut [0; BUFFER]).is_ok_and(|read| read > 0) {}
        }
    }

    /// Returns when something has happened.
    pub(super) async fn changed(&self) {
        let Some(Eyes { queue, .. }) = &self.eyes else { return std::future::pending().await };
        loop {
            if queue.readable().await.is_err() {
                return std::future::pending().await;
            }
            match queue.try_read(&mut [0; BUFFER]) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Ok(_) => return,
                Err(_) => return std::future::pending().await,
            }
        }
    }
}

fn blind(error: &io::Error) {
    tracing::warn!(%error, "hosts_dir can't be watched; changes in it are seen by looking every few seconds");
}
