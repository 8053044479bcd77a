use std::fmt;
use std::path::Path;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

use super::{IdentityError, files};

/// The least that a secret may have, in bytes.
const LEAST: usize = 32;

/// What only members know. The first makes keys; the others open what was made before, or will be soon.
#[derive(Clone)]
pub(super) struct Secrets {
    first: Prk,
    others: Vec<Prk>,
}

/// The length of a key, for HKDF.
#[derive(Debug, Clone, Copy)]
struct Key;

impl KeyType for Key {
    fn len(&self) -> usize {
        32
    }
}

impl Secrets {
    pub(super) fn new<'a>(first: &[u8], others: impl Iterator<Item = &'a [u8]>) -> Self {
        let salt = Salt::new(HKDF_SHA256, b"larder peers 1");
        Self { first: salt.extract(first), others: others.map(|secret| salt.extract(secret)).collect() }
    }

    /// Reads lines of at least [`LEAST`] bytes.
    pub(super) fn read(path: &Path) -> Result<Self, IdentityError> {
        let wrong = |reason: &str| files::invalid("secret", path, format!("{reason}; openssl rand -hex 32 makes one"));
        let bytes = files::read("secret", path)?;
        let mut lines = bytes.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        if lines.clone().any(|line| line.len() < LEAST) {
            return Err(wrong("a line of it has less than 32 bytes"));
        }
        let first = lines.next().ok_or_else(|| wrong("it is empty"))?;
        Ok(Self::new(first, lines))
    }

    pub(super) fn first(&self, purpose: &[u8]) -> [u8; 32] {
        derive(&self.first, purpose)
    }

    pub(super) fn all(&self, purpose: &[u8]) -> Vec<[u8; 32]> {
        std::iter::once(&self.first).chain(&self.others).map(|secret| derive(secret, purpose)).collect()
    }
}

#[expect(clippy::expect_used, reason = "HKDF makes up to 255 times 32 bytes, and this is one time")]
fn derive(secret: &Prk, purpose: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    let filled = secret.expand(&[purpose], Key).and_then(|material| material.fill(&mut key));
    filled.expect("32 bytes of HKDF-SHA256");
    key
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", 1 + self.others.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_secret_and_purpose() {
        let secrets = Secrets::new(&[1; 32], std::iter::once(&[2_u8; 32][..]));
        let [one, two] = secrets.all(b"a")[..] else { panic!("two secrets") };
        assert_eq!(secrets.first(b"a"), one);
        assert_ne!(one, two);
        assert_ne!(secrets.first(b"b"), one);
        assert_ne!(one, [0; 32]);
        assert_eq!(Secrets::new(&[2; 32], std::iter::empty()).first(b"a"), two);
        assert_eq!(format!("{secrets:?}"), "2 secrets");
    }

    #[test]
    fn lines_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        let (a, b) = ("a".repeat(64), "b".repeat(32));
        write(&format!("{a}\n\n  {b}\r\n"));
        let both = Secrets::read(file.path()).unwrap();
        assert_eq!(both.all(b"x").len(), 2);
        write(&b);
        assert_eq!(Secrets::read(file.path()).unwrap().first(b"x"), both.all(b"x")[1]);
        for wrong in ["", "\n", "short", &format!("{a}\nshort")] {
            write(wrong);
            let error = Secrets::read(file.path()).unwrap_err().to_string();
            assert!(error.contains("openssl rand"), "{error}");
        }
    }
}
