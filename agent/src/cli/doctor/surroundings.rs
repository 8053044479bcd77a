//! Where doctor runs: on the host, or in a Pod that sees only what is mounted of it.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Where we are, and what is seen of the host from there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    pub(super) is_pod: bool,
    pub(super) mounts: Vec<Mount>,
    /// The user that doctor runs as.
    pub(super) is_root: bool,
    /// By `uname -r`.
    pub(super) kernel: String,
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) at: PathBuf,
    pub(super) filesystem: String,
    /// What the filesystem was told when it was mounted.
    pub(super) options: String,
}

impl Surroundings {
    /// From the kernel's table of mounts. `has_service`: whether `KUBERNETES_SERVICE_HOST` is set, which kubelet does in
    /// every Pod.
    pub(super) fn new(mountinfo: &str, has_service: bool, is_root: bool, kernel: String) -> Self {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(mount).collect();
        // containerd's snapshots are the roots of its containers, and of nobody else.
        let is_container = mounts.iter().any(|mount| {
            mount.at == Path::new("/")
                && mount.filesystem == "overlay"
                && mount.options.contains("io.containerd.snapshotter")
        });
        Self { is_pod: has_service || is_container, mounts, is_root, kernel }
    }

    /// Whether a path is the host's own: everywhere on the host, and below a mount in a Pod.
    pub(super) fn sees(&self, path: &Path) -> bool {
        !self.is_pod || self.mount_of(path).is_some_and(|mount| mount.at != Path::new("/"))
    }

    /// The mount that a path is on.
    pub(super) fn mount_of(&self, path: &Path) -> Option<&Mount> {
        // Of two at one place the later hides the earlier.
        let within = self.mounts.iter().filter(|mount| path.starts_with(&mount.at));
        within.max_by_key(|mount| mount.at.components().count())
    }
}

fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let at = before.split(' ').nth(4)?;
    let mut fields = after.split(' ');
    let (filesystem, _source, options) = (fields.next()?, fields.next()?, fields.next().unwrap_or_default());
    Some(Mount { at: unescape(at), filesystem: filesystem.to_owned(), options: options.to_owned() })
}

/// The kernel writes blanks and backslashes as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = text.get(at + 1..at + 4).filter(|_| byte == b'\\');
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                at += 4;
            }
            None => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POD: &str = "\
1000 900 0:300 / / ro,relatime master:1 - overlay overlay rw,lowerdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/7/fs,upperdir=/u,workdir=/w
1001 1000 0:301 / /proc rw,nosuid - proc proc rw
1002 1000 8:1 /etc/containerd /etc/containerd ro,relatime - ext4 /dev/sda1 rw
1003 1002 8:1 /etc/containerd/certs.d /etc/containerd/certs.d rw,relatime - ext4 /dev/sda1 rw
1004 1000 8:1 /a\\040b /a\\040b rw - ext4 /dev/sda1 rw
";

    #[test]
    fn what_a_pod_sees() {
        let pod = Surroundings::new(POD, false, true, String::new());
        assert!(pod.is_pod);
        for (path, sees, at) in [
            ("/etc/containerd/config.toml", true, "/etc/containerd"),
            ("/etc/containerd/certs.d/docker.io/hosts.toml", true, "/etc/containerd/certs.d"),
            ("/a b/c", true, "/a b"),
            ("/etc/ssl/corp.pem", false, "/"),
            ("/etc/containerd-other", false, "/"),
        ] {
            assert_eq!(pod.sees(Path::new(path)), sees, "{path}");
            assert_eq!(pod.mount_of(Path::new(path)).unwrap().at, Path::new(at), "{path}");
        }
    }

    #[test]
    fn a_host_sees_all() {
        let text = "30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";
        let host = Surroundings::new(text, false, true, String::new());
        assert!(!host.is_pod && host.sees(Path::new("/etc/ssl/corp.pem")));
        // kind's nodes are containers themselves, of Docker.
        let kind = "30 1 0:50 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A\n";
        assert!(!Surroundings::new(kind, false, true, String::new()).is_pod);
        assert!(Surroundings::new(kind, true, true, String::new()).is_pod);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(\\PC|\\\\|\n){0,80}") {
            let _ = Surroundings::new(&text, false, true, String::new());
            let _ = unescape(&text);
        }
    }
}
