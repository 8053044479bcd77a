use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::IdentityError;
use crate::image::NodeId;

/// The number in `<dir>/node`, which is made if there is none. Where no file can be had, it lasts as long as the
/// process. Blocks on the disk.
pub(super) fn open(dir: &Path) -> Result<NodeId, IdentityError> {
    let path = dir.join("node");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim_end().parse().map_err(|_| IdentityError::NoNumber { path }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let made = NodeId::new(rand::random());
            if let Err(error) = write(dir, &path, made) {
                tracing::warn!(path = %path.display(), %error, "this node's number can't be kept; the next start makes a new one");
            }
            Ok(made)
        }
        // Not UTF-8.
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(IdentityError::NoNumber { path }),
        Err(source) => Err(IdentityError::Number { path, source }),
    }
}

fn write(dir: &Path, path: &Path, node: NodeId) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{node}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // A power loss must not leave another node with this one's name: what isn't on disk was never told to anybody.
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let peers = dir.path().join("peers");
        let node = open(&peers).unwrap();
        assert_eq!(open(&peers).unwrap(), node);
        assert_ne!(open(&dir.path().join("other")).unwrap(), node);
        assert!(open(Path::new("/proc/larder")).is_ok(), "without a disk, for as long as the process");
    }

    #[test]
    fn what_is_no_number_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for wrong in ["", "abc", "\n\n", "0123456789abcdef0123456789abcdeX", "0123456789ABCDEF0123456789ABCDEF"] {
            fs::write(dir.path().join("node"), wrong).unwrap();
            let error = open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("node") && error.contains("remove it"), "{error}");
        }
        fs::write(dir.path().join("node"), [0xff, 0xfe]).unwrap();
        assert!(matches!(open(dir.path()), Err(IdentityError::NoNumber { .. })));
    }
}
