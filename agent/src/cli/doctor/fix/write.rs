use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fsetxattr, getxattr};

use super::plan::Plan;

/// SELinux's label of a file.
const LABEL: &str = "security.selinux";
/// As many backups are made in one second as anybody wants.
const BACKUPS: u32 = 10;

/// The new file beside the old one, under a name that no import finds. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
}

impl Draft {
    /// Writes it, with the mode, the owner and the label of the one that it is to replace.
    pub(super) fn write(plan: &Plan) -> io::Result<Self> {
        let folder = plan.file.parent().unwrap_or(Path::new("/"));
        if plan.before.is_none() {
            fs::create_dir_all(folder)?;
        }
        // Not `*.toml`, which files import.
        let name = plan.file.file_name().unwrap_or_default().to_string_lossy();
        let path = folder.join(format!(".{name}.larder-{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let draft = Self { path };
        file.write_all(plan.after.as_bytes())?;
        match plan.file.symlink_metadata() {
            Ok(old) => {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
                file.set_permissions(old.permissions())?;
                label(&plan.file, &file);
            }
            Err(_) => file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?,
        }
        file.sync_all()?;
        Ok(draft)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it in the place of the old one, which stays under a name with the time; that name is returned.
    pub(super) fn commit(self, plan: &Plan) -> io::Result<Option<PathBuf>> {
        let Some(before) = &plan.before else {
            // Fails where somebody has made it meanwhile.
            fs::hard_link(&self.path, &plan.file)?;
            return self.sync(plan).map(|()| None);
        };
        if fs::read_to_string(&plan.file)? != *before {
            return Err(io::Error::other("somebody has changed it meanwhile; run it again"));
        }
        let backup = backup(&plan.file)?;
        fs::rename(&self.path, &plan.file)?;
        self.sync(plan)?;
        Ok(Some(backup))
    }

    fn sync(&self, plan: &Plan) -> io::Result<()> {
        File::open(plan.file.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Renamed, it isn't there any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// A second name for the file as it is now: the same inode, which the rename then leaves to it. Never an older backup's.
fn backup(file: &Path) -> io::Result<PathBuf> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut outcome = Err(io::Error::other("no name is free for a backup"));
    for number in 0..BACKUPS {
        let number = if number == 0 { String::new() } else { format!("-{number}") };
        let backup = file.with_file_name(format!("{name}.before-larder-{now}{number}"));
        outcome = fs::hard_link(file, &backup).map(|()| backup);
        if !matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
    }
    outcome
}

/// Where there is no SELinux, there is none to keep; where it refuses, the folder's own label serves.
fn label(old: &Path, new: &File) {
    let mut value = vec![0; 4096];
    if let Ok(length) = getxattr(old, LABEL, &mut value[..]) {
        let _ = fsetxattr(new, LABEL, &value[..length], XattrFlags::empty());
    }
}
