//! When the last blob of an image is in containerd's store: a pull by CRI goes on to unpack.

use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use larder_integration::{Containerd, Image};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Waits for blobs to be in containerd's store. The kernel tells: to look every millisecond would take CPU from what is
/// measured.
pub(super) struct Committed {
    blobs: Vec<PathBuf>,
    inotify: Inotify,
}

impl Committed {
    /// All blobs of an image; none of them is there.
    pub(super) fn watch(containerd: &Containerd, image: &Image) -> Result<Self> {
        let blobs: Vec<_> = image.blobs().iter().map(|blob| containerd.blob(&blob.digest)).collect();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let folder = blobs.first().and_then(|blob| blob.parent()).context("an image without blobs")?;
        std::fs::create_dir_all(folder)?;
        inotify.add_watch(folder, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE)?;
        Ok(Self { blobs, inotify })
    }

    /// Blocks until they are.
    pub(super) fn all(mut self) -> Result<()> {
        loop {
            self.blobs.retain(|blob| !blob.exists());
            if self.blobs.is_empty() {
                return Ok(());
            }
            let mut waiting = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            ensure!(poll(&mut waiting, PollTimeout::from(60_000u16))? > 0, "no blob came for a minute");
            let _ = self.inotify.read_events()?;
        }
    }
}
