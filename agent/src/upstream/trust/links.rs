use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows.
const MOST: usize = 40;

/// Where `path` leads when `root` is taken for the root of everything: links to absolute paths, and those that climb,
/// stay below it, as they do for the host whose folder is mounted there.
///
/// # Errors
/// What the system says: there is nothing at the end of it, more than 40 links lead to each other, no permission.
pub(super) fn follow(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut rest: VecDeque<OsString> = parts(path).collect();
    let mut found = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            found.pop();
            continue;
        }
        found.push(&part);
        let at = root.join(&found);
        if !at.symlink_metadata()?.is_symlink() {
            continue;
        }
        links += 1;
        if links > MOST {
            return Err(io::Error::from(nix::errno::Errno::ELOOP));
        }
        let target = at.read_link()?;
        found.pop();
        if target.is_absolute() {
            found.clear();
        }
        parts(&target).rev().for_each(|part| rest.push_front(part));
    }
    Ok(root.join(found))
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_below_the_root() {
        let root = tempfile::TempDir::new().unwrap();
        let root = root.path();
        for folder in ["etc/pki/tls/certs", "etc/ssl"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("etc/pki/real.pem"), "x").unwrap();
        symlink("../pki/tls/certs", root.join("etc/ssl/certs")).unwrap();
        symlink("/etc/pki/real.pem", root.join("etc/pki/tls/certs/absolute.pem")).unwrap();
        symlink("../../../../../../../etc/pki/real.pem", root.join("etc/pki/tls/certs/climbs.pem")).unwrap();
        symlink("/usr/share/gone.crt", root.join("etc/pki/tls/certs/dangling.pem")).unwrap();
        symlink("loop.pem", root.join("etc/pki/tls/certs/loop.pem")).unwrap();
        let real = root.join("etc/pki/real.pem");
        for name in ["absolute.pem", "climbs.pem"] {
            assert_eq!(follow(root, &Path::new("/etc/ssl/certs").join(name)).unwrap(), real);
        }
        let kind = |name: &str| follow(root, &Path::new("etc/ssl/certs").join(name)).unwrap_err();
        assert_eq!(kind("dangling.pem").kind(), io::ErrorKind::NotFound);
        assert_eq!(kind("missing.pem").kind(), io::ErrorKind::NotFound);
        assert_eq!(kind("loop.pem").raw_os_error(), Some(nix::libc::ELOOP));
        assert_eq!(follow(root, Path::new("../../etc")).unwrap(), root.join("etc"));
    }
}
