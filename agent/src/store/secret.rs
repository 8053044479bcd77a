use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use tracing::warn;

const BYTES: usize = 32;

/// A key of keyed hashes (HMAC-SHA-256). Without it, what was hashed says nothing, not even to who guesses well. The
/// store's own lies in a file that root alone may read.
#[derive(Debug)]
pub struct Secret(hmac::Key);

impl Secret {
    /// A key that is known already.
    #[must_use]
    pub fn new(key: &[u8; BYTES]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Reads the key or makes it. Where no file can be had, it lasts as long as the process. Blocks on the disk.
    pub(super) fn open(path: &Path, writable: bool) -> Self {
        let kept = read(path).or_else(|| {
            let made = rand::random::<[u8; BYTES]>();
            if writable && let Err(error) = write(path, &made) {
                warn!(path = %path.display(), %error, "the key of what is remembered can't be kept: it is forgotten with this process");
            }
            writable.then_some(made)
        });
        Self::new(&kept.unwrap_or_else(rand::random))
    }

    /// Where a key is written that is to come to `path`.
    pub(super) fn unnamed(path: &Path) -> PathBuf {
        path.with_extension("new")
    }

    /// The hash of `parts`, which can't run together.
    #[must_use]
    pub fn hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut hash = [0; 32];
        hash.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
        hash
    }
}

/// `None` for what isn't there, or is no key.
fn read(path: &Path) -> Option<[u8; BYTES]> {
    let mut bytes = Vec::with_capacity(BYTES + 1);
    std::fs::File::open(path).ok()?.take(BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
    bytes.try_into().ok()
}

fn write(path: &Path, key: &[u8; BYTES]) -> io::Result<()> {
    let new = Secret::unnamed(path);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn kept_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private.key");
        let hash = Secret::open(&path, true).hash(&[b"a", b"bc"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Secret::open(&path, false);
        assert_eq!(again.hash(&[b"a", b"bc"]), hash);
        assert_ne!(again.hash(&[b"ab", b"c"]), hash);

        std::fs::write(&path, "cut").unwrap();
        assert_ne!(Secret::open(&path, true).hash(&[b"a", b"bc"]), hash, "what is no key is replaced");
        let nowhere = dir.path().join("missing/private.key");
        assert_ne!(Secret::open(&nowhere, true).hash(&[b"a"]), Secret::open(&nowhere, true).hash(&[b"a"]));
    }
}
