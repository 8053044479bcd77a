//! Folders that go away, with all that is mounted in them.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::say;

/// A folder below the system's temporary one, removed on drop. Kept when `LARDER_KEEP` is set, to look around in it.
#[derive(Debug)]
pub struct Folder {
    inner: Option<TempDir>,
    path: PathBuf,
}

impl Folder {
    /// A new, empty one. Its path is short, since Unix sockets live in it.
    pub fn new() -> Result<Self> {
        let inner = TempDir::with_prefix("larder-").context("making a temporary folder")?;
        Ok(Self { path: inner.path().to_owned(), inner: Some(inner) })
    }

    /// The same in memory, where that many bytes are free there.
    pub fn in_memory(bytes: u64) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let room = nix::sys::statvfs::statvfs(memory).context("/dev/shm")?;
        let room = room.blocks_available() * room.fragment_size();
        ensure!(room >= bytes, "/dev/shm has room for {room} bytes, and {bytes} are wanted");
        let inner = TempDir::with_prefix_in("larder-", memory).context("making a folder in memory")?;
        Ok(Self { path: inner.path().to_owned(), inner: Some(inner) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// All that is below a folder, by name: mode, owner and group, kind, and content or target. What `skip` names is left out with all that is
/// below it.
pub fn listing(folder: &Path, skip: &[&Path]) -> Result<BTreeMap<PathBuf, String>> {
    let (mut found, mut left) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(path) = left.pop() {
        if skip.contains(&path.as_path()) {
            continue;
        }
        let metadata = path.symlink_metadata().with_context(|| format!("{}", path.display()))?;
        let kind = metadata.file_type();
        let what = if kind.is_symlink() {
            format!("-> {}", std::fs::read_link(&path)?.display())
        } else if kind.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                left.push(entry?.path());
            }
            "folder".to_owned()
        } else if kind.is_file() {
            crate::digest_of(&std::fs::read(&path)?)
        } else {
            format!("{kind:?}")
        };
        let (mode, owner, group) = (metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid());
        found.insert(path, format!("{mode:o} {owner}:{group} {what}"));
    }
    Ok(found)
}

impl Drop for Folder {
    fn drop(&mut self) {
        unmount_below(&self.path);
        let Some(inner) = self.inner.take() else { return };
        if std::env::var_os("LARDER_KEEP").is_some() {
            eprintln!("kept: {}", inner.keep().display());
        } else if let Err(error) = inner.close() {
            eprintln!("{} stays: {error}", self.path.display());
        }
    }
}

/// Makes a folder a mount whose own mounts others may follow, as all of a host's are with systemd.
pub fn share_mounts(folder: &Path) -> Result<()> {
    say(Command::new("mount").arg("--bind").arg(folder).arg(folder))?;
    say(Command::new("mount").arg("--make-shared").arg(folder)).map(drop)
}

/// A containerd killed in the middle of unpacking leaves its mounts behind.
fn unmount_below(folder: &Path) {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else { return };
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(folder));
    for at in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["--lazy", at]).status();
    }
}

/// A filesystem of its own on a loop device. Unmounted on drop.
#[derive(Debug)]
pub struct Disk {
    // Unmounts before it removes.
    folder: Folder,
    mount: PathBuf,
}

impl Disk {
    /// An empty ext4 of `mebibytes`, to be filled up: no reserve for root, no journal, all of it is for files. Needs root.
    pub fn small(mebibytes: u64) -> Result<Self> {
        let disk = Self::unmade()?;
        std::fs::File::create(disk.image())?.set_len(mebibytes << 20)?;
        say(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-O", "^has_journal"]).arg(disk.image()))?;
        say(Command::new("mount").args(["-o", "loop"]).arg(disk.image()).arg(&disk.mount))?;
        Ok(disk)
    }

    /// An empty ext4 of `gibibytes` as nodes have it: with its journal, and with no page cache but its own. All of its
    /// bytes are allocated. Needs root.
    pub fn of_a_node(gibibytes: u64) -> Result<Self> {
        let disk = Self::unmade()?;
        let image = std::fs::File::create(disk.image())?;
        let bytes = i64::try_from(gibibytes << 30)?;
        nix::fcntl::fallocate(&image, nix::fcntl::FallocateFlags::empty(), 0, bytes)
            .with_context(|| format!("{gibibytes} GiB for a disk, in {}", disk.folder.path().display()))?;
        // Nothing is left to be written behind what is measured.
        let done = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        say(Command::new("mkfs.ext4").args(["-q", "-E", done]).arg(disk.image()))?;
        let device = say(Command::new("losetup").args(["--direct-io=on", "--find", "--show"]).arg(disk.image()))?;
        let device = device.trim();
        let mounted = say(Command::new("mount").arg(device).arg(&disk.mount));
        // It stays while it is mounted, and goes with the mount.
        say(Command::new("losetup").args(["--detach", device]))?;
        mounted.map(|_| disk)
    }

    fn unmade() -> Result<Self> {
        let folder = Folder::new()?;
        let mount = folder.path().join("disk");
        std::fs::create_dir(&mount)?;
        Ok(Self { folder, mount })
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// The loop device that it lies on has let go of it: nobody has it mounted any more, wherever.
    pub fn is_free(&self) -> Result<bool> {
        Ok(say(Command::new("losetup").arg("--associated").arg(self.image()))?.is_empty())
    }

    /// Moves the mount to this folder, which may be in a shared mount.
    pub fn move_to(&mut self, folder: &Path) -> Result<()> {
        say(Command::new("umount").arg(&self.mount))?;
        std::fs::create_dir_all(folder)?;
        say(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(folder))?;
        folder.clone_into(&mut self.mount);
        Ok(())
    }

    /// Unmounts it, as the host does with a volume that no Pod uses any more; fails when it is busy.
    pub fn unmount(&self) -> Result<()> {
        say(Command::new("umount").arg(&self.mount)).map(drop)
    }

    /// Makes it read-only, as the kernel does after an IO error, or writable again.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let mode = if read_only { "remount,ro" } else { "remount,rw" };
        say(Command::new("mount").args(["-o", mode]).arg(&self.mount)).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount_below(self.folder.path());
    }
}
