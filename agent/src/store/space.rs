use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

use super::bounds::DiskUse;
use super::locks::held;
use super::metrics::Metrics;

/// How long nothing is stored after the disk was full, unless space is freed before.
const FULL_PAUSE: Duration = Duration::from_secs(10);
/// How long nothing is stored after the disk refused to be written to.
const READ_ONLY_PAUSE: Duration = Duration::from_secs(30);
/// What is left free beside a blob that begins to arrive, for the index and for others, in bytes.
const MARGIN: u64 = 16 << 20;

/// What can be done in the store's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Everything.
    Writable,
    /// What is there can be served.
    ReadOnly,
    /// There is no such folder, and there can't be.
    Absent,
}

/// The troubles of a disk that turn storing off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Full,
    ReadOnly,
}

impl Trouble {
    /// `None` for an error that says nothing about the disk as a whole.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        if error.kind() == io::ErrorKind::StorageFull {
            return Some(Self::Full);
        }
        match error.raw_os_error()? {
            nix::libc::EDQUOT => Some(Self::Full),
            nix::libc::EROFS | nix::libc::EACCES | nix::libc::EPERM | nix::libc::EIO => Some(Self::ReadOnly),
            _ => None,
        }
    }

    const fn pause(self) -> Duration {
        match self {
            Self::Full => FULL_PAUSE,
            Self::ReadOnly => READ_ONLY_PAUSE,
        }
    }
}

/// Whether there is room, and whether storing is on.
#[derive(Debug)]
pub(super) struct Space {
    root: PathBuf,
    metrics: Metrics,
    state: Mutex<SpaceState>,
}

#[derive(Debug)]
struct SpaceState {
    standing: Standing,
    off: Option<(Trouble, Instant)>,
}

impl Space {
    pub(super) fn new(root: PathBuf, standing: Standing, metrics: Metrics) -> Self {
        metrics.set_writable(standing == Standing::Writable);
        Self { root, metrics, state: Mutex::new(SpaceState { standing, off: None }) }
    }

    pub(super) fn standing(&self) -> Standing {
        held(&self.state).standing
    }

    /// Nothing is stored any more, until the process starts again.
    pub(super) fn turn_off(&self) {
        held(&self.state).standing = Standing::ReadOnly;
        self.metrics.set_writable(false);
    }

    /// Whether `need` more bytes can be stored. Asks the disk, so it may block.
    pub(super) fn allows(&self, need: u64) -> Result<(), Trouble> {
        {
            let mut state = held(&self.state);
            match (state.standing, state.off) {
                (Standing::ReadOnly | Standing::Absent, _) => return Err(Trouble::ReadOnly),
                (Standing::Writable, Some((trouble, until))) if Instant::now() < until => return Err(trouble),
                (Standing::Writable, Some(_)) => {
                    state.off = None;
                    self.metrics.set_writable(true);
                }
                (Standing::Writable, None) => {}
            }
        }
        match statvfs(&self.root) {
            Ok(stat) if available(&stat) < need.saturating_add(MARGIN) => {
                self.note(&io::ErrorKind::StorageFull.into());
                Err(Trouble::Full)
            }
            // A folder that was deleted is made again by who goes on; a disk that doesn't answer shows itself there.
            _ => Ok(()),
        }
    }

    /// Takes note of what the disk said to a write; storing pauses if that means anything for the next one.
    pub(super) fn note(&self, error: &io::Error) {
        let Some(trouble) = Trouble::of(error) else { return };
        let mut state = held(&self.state);
        let news = state.off.is_none_or(|(known, until)| known != trouble || until <= Instant::now());
        state.off = Some((trouble, Instant::now() + trouble.pause()));
        self.metrics.set_writable(false);
        if news {
            warn!(dir = %self.root.display(), %error, pause = ?trouble.pause(), "nothing is stored for a while");
        }
    }

    /// Space was freed: if storing was off for lack of it, the next one tries.
    pub(super) fn freed(&self) {
        let mut state = held(&self.state);
        if let Some((Trouble::Full, _)) = state.off {
            state.off = None;
            self.metrics.set_writable(state.standing == Standing::Writable);
            info!(dir = %self.root.display(), "space was freed, blobs are stored again");
        }
    }

    /// Whether a write failed for lack of space moments ago.
    pub(super) fn is_full(&self) -> bool {
        matches!(held(&self.state).off, Some((Trouble::Full, until)) if Instant::now() < until)
    }

    /// The disk's size and use; `None` where it can't be asked. May block.
    pub(super) fn disk(&self) -> Option<DiskUse> {
        let stat = statvfs(&self.root).ok()?;
        let used = (stat.blocks().saturating_sub(stat.blocks_free())).saturating_mul(stat.fragment_size());
        Some(DiskUse { size: used.saturating_add(available(&stat)), used })
    }
}

fn available(stat: &nix::sys::statvfs::Statvfs) -> u64 {
    stat.blocks_available().saturating_mul(stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_pauses_storing_until_space_is_freed() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(dir.path().into(), Standing::Writable, Metrics::default());
        assert_eq!(space.allows(1), Ok(()));
        space.note(&io::Error::from_raw_os_error(nix::libc::ENOENT));
        assert_eq!(space.allows(1), Ok(()), "an error that says nothing about the disk");
        space.note(&io::Error::from_raw_os_error(nix::libc::ENOSPC));
        assert_eq!(space.allows(1), Err(Trouble::Full));
        assert!(space.is_full());
        space.freed();
        assert_eq!(space.allows(1), Ok(()));
        assert_eq!(space.allows(u64::MAX), Err(Trouble::Full), "more than the disk has");
        assert!(space.is_full(), "which is for the sweep to know");
        space.turn_off();
        assert_eq!(space.allows(1), Err(Trouble::ReadOnly));
    }
}
