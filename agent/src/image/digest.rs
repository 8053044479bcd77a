use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// The name of a blob: an algorithm and the hash of its bytes.
///
/// Only the two algorithms that the OCI image specification registers are taken, in lower-case hexadecimal of the
/// exact length, so the text of a `Digest` is safe as a file name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// `sha256:` and 64 hexadecimal digits.
    Sha256([u8; 32]),
    /// `sha512:` and 128 hexadecimal digits.
    Sha512([u8; 64]),
}

/// What was wrong with a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// There is no `algorithm:` in front.
    #[error("a digest is written algorithm:hex")]
    NoAlgorithm,
    /// The algorithm is none of `sha256` and `sha512`.
    #[error("the algorithm of a digest is sha256 or sha512")]
    UnknownAlgorithm,
    /// The hash has the wrong length or a character that is no lower-case hexadecimal digit.
    #[error("a digest has 64 (sha256) or 128 (sha512) lower-case hexadecimal digits")]
    NotHex,
}

impl Digest {
    /// The digest of `bytes` by SHA-256, the algorithm that registries use when nobody asks for another.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    /// `sha256` or `sha512`.
    #[must_use]
    pub const fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hash alone, in lower-case hexadecimal.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        let mut hex = String::with_capacity(self.bytes().len() * 2);
        for byte in self.bytes() {
            // Writing to a `String` never fails.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    /// A hasher of this digest's algorithm, to check bytes against it.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    /// The digest of `bytes` by this one's algorithm: the same, if it is theirs.
    #[must_use]
    pub fn like(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    const fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest::NoAlgorithm)?;
        match algorithm {
            "sha256" => Ok(Self::Sha256(unhex(hex)?)),
            "sha512" => Ok(Self::Sha512(unhex(hex)?)),
            _ => Err(InvalidDigest::UnknownAlgorithm),
        }
    }
}

fn unhex<const N: usize>(hex: &str) -> Result<[u8; N], InvalidDigest> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Ok(c - b'0'),
        b'a'..=b'f' => Ok(c - b'a' + 10),
        _ => Err(InvalidDigest::NotHex),
    };
    if hex.len() != N * 2 {
        return Err(InvalidDigest::NotHex);
    }
    let mut hash = [0; N];
    for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(hash)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A running hash, cheap to clone, so that a reader can go on with it where another stopped.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256 under way.
    Sha256(Sha256),
    /// SHA-512 under way.
    Sha512(Sha512),
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of everything taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::Sha256(hash.finalize().into()),
            Self::Sha512(hash) => Digest::Sha512(hash.finalize().into()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_digests() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        let parsed: Digest = empty.parse().unwrap();
        let mut hasher = parsed.hasher();
        hasher.update(b"");
        assert_eq!(hasher.finish(), parsed);
    }

    #[test]
    fn refuses_what_is_no_digest() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, error) in [
            (hex.to_owned(), InvalidDigest::NoAlgorithm),
            (format!("md5:{hex}"), InvalidDigest::UnknownAlgorithm),
            (format!("sha256:{}", hex.to_uppercase()), InvalidDigest::NotHex),
            (format!("sha256:{}", &hex[1..]), InvalidDigest::NotHex),
            (format!("sha512:{hex}"), InvalidDigest::NotHex),
            (format!("sha256:../{}", &hex[3..]), InvalidDigest::NotHex),
            (format!("sha256:é{}", &hex[2..]), InvalidDigest::NotHex),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_back(bytes: Vec<u8>) {
            let digest = Digest::of(&bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        }

        #[test]
        fn never_panics_and_never_changes_the_text(text in "(sha256|sha512|x)?:?[0-9a-fA-F./]{0,140}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
