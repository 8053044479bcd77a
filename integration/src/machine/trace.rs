//! What a machine has written: to see that something is gone without one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::digest_of;

/// What is others' to write, at any time.
const NOT_OURS: [&str; 9] = [
    // What dpkg knows of packages; what it knows of ours is asked of itself.
    "/var/lib/dpkg",
    "/var/cache/debconf",
    // Logs.
    "/var/log",
    "/var/lib/systemd",
    // containerd's own.
    "/var/lib/containerd",
    // An index over all of the manual, made anew when pages come or go.
    "/var/cache/man",
    "/var/lib/private",
    "/var/lib/dbus",
    "/var/tmp",
];

/// Files and folders with what is in them, whose they are and who may read them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace(BTreeMap<PathBuf, String>);

impl Trace {
    /// Of an overlay's upper folder, and of what is mounted at `/var/lib`.
    pub(super) fn of(upper: &Path, lib: &Path) -> Result<Self> {
        let mut trace = Self::default();
        trace.walk(upper, Path::new("/"))?;
        trace.walk(lib, Path::new("/var/lib"))?;
        Ok(trace)
    }

    /// What is here and wasn't in `before`, went since, or is another; a line each.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let new = self.0.iter().filter(|(path, what)| before.0.get(*path) != Some(*what));
        let gone = before.0.iter().filter(|(path, _)| !self.0.contains_key(*path));
        let line = |sign: &str, (path, what): (&PathBuf, &String)| format!("{sign} {} {what}", path.display());
        new.map(|one| line("+", one)).chain(gone.map(|one| line("-", one))).collect()
    }

    fn walk(&mut self, folder: &Path, seen_as: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
            let entry = entry?;
            let (path, seen_as) = (entry.path(), seen_as.join(entry.file_name()));
            if NOT_OURS.iter().any(|theirs| seen_as.starts_with(theirs)) {
                continue;
            }
            let about = fs::symlink_metadata(&path)?;
            let (kind, mode) = (about.file_type(), about.permissions().mode());
            let content = match () {
                () if kind.is_symlink() => fs::read_link(&path)?.display().to_string(),
                () if kind.is_file() => digest_of(&fs::read(&path)?),
                () => String::new(),
            };
            // A folder of the machine below is in the overlay as soon as anything in it is.
            if !(kind.is_dir() && fs::metadata(&seen_as).is_ok_and(|below| below.permissions().mode() == mode)) {
                let what = format!("{mode:o} {}:{} {content}", about.uid(), about.gid());
                self.0.insert(seen_as.clone(), what);
            }
            if kind.is_dir() {
                self.walk(&path, &seen_as)?;
            }
        }
        Ok(())
    }
}
