use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::boot::{Boot, unix_now};
use super::provenance::Provenance;
use crate::image::{Access, Digest, MediaType};

/// What is known of a blob, its checksums aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlobRecord {
    /// Bytes.
    pub(super) size: u64,
    pub(super) state: State,
    pub(super) hold: Hold,
    pub(super) media_type: Option<MediaType>,
    pub(super) provenance: Provenance,
}

/// How far a blob's file can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// Found on the disk; nobody has hashed it since.
    Suspect,
    /// Proven, and in the page cache of this boot for sure; on the disk perhaps.
    Unsynced(Boot),
    /// Proven, and brought to the disk.
    Synced,
    /// Proven, and brought to the disk by containerd, which syncs what it commits: trusted as long as it is the file with
    /// this number. Another one under the name is what a power loss brought back.
    Theirs { inode: u64 },
}

/// Whose bytes of the disk a blob has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Hold {
    /// Ours alone: dropping it frees them.
    Own,
    /// containerd's file has our name too.
    Linked,
    /// A file of ours that shares its extents with containerd's.
    Cloned,
    /// There is no file of ours: this is containerd's.
    InPlace(PathBuf),
}

impl State {
    /// Whether the file with the number `file` may be served, checksums permitting, without hashing it whole.
    pub(super) fn is_trusted(self, boot: Boot, file: u64) -> bool {
        match self {
            Self::Suspect => false,
            Self::Unsynced(then) => then == boot,
            Self::Synced => true,
            Self::Theirs { inode } => inode == file,
        }
    }
}

/// The last answer that an upstream gave about a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest that the tag meant.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: MediaType,
    /// The manifest's size, in bytes.
    pub size: u64,
    /// When an upstream last said so, in seconds since 1970.
    pub confirmed_at: u64,
}

impl TagRecord {
    /// What an upstream said so long ago.
    #[must_use]
    pub fn new(digest: Digest, media_type: MediaType, size: u64, age: Duration) -> Self {
        let confirmed_at = (unix_now() / 1000).saturating_sub(age.as_secs());
        Self { digest, media_type, size, confirmed_at }
    }

    /// Whether an upstream said so less than `time` ago. Not where it seems to be still to come: the clock was set back
    /// since, and nobody knows by how much.
    #[must_use]
    pub fn is_younger_than(&self, time: Duration) -> bool {
        let age = (unix_now() / 1000).checked_sub(self.confirmed_at);
        age.is_some_and(|age| Duration::from_secs(age) < time)
    }

    /// How long ago an upstream last said so, to the second.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_secs((unix_now() / 1000).saturating_sub(self.confirmed_at))
    }
}

/// Whether a repository opens to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Openness {
    /// [`Access::Anonymous`] where an anonymous caller got something of it; [`Access::Authorized`] where none did.
    pub(super) access: Access,
    /// Seconds since 1970.
    pub(super) found_at: u64,
}

/// Compact bytes with a checksum behind them, so that a flipped bit is a missing record and not a wrong one.
pub(super) fn seal<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    let mut bytes = postcard::to_stdvec(value).ok()?;
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    Some(bytes)
}

/// What [`seal`] took; `None` for anything else.
pub(super) fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    postcard::from_bytes(body).ok()
}

/// A digest as a key: one byte for the algorithm, then the hash.
pub(super) fn key(digest: &Digest) -> Vec<u8> {
    match digest {
        Digest::Sha256(hash) => [&[1], hash.as_slice()].concat(),
        Digest::Sha512(hash) => [&[2], hash.as_slice()].concat(),
    }
}

/// The digest that a key stands for.
pub(super) fn digest_of(key: &[u8]) -> Option<Digest> {
    match key.split_first()? {
        (1, hash) => hash.try_into().ok().map(Digest::Sha256),
        (2, hash) => hash.try_into().ok().map(Digest::Sha512),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> BlobRecord {
        let mut provenance = Provenance::default();
        provenance.add(&"ghcr.io".parse().unwrap(), Access::Authorized);
        let (state, hold) = (State::Unsynced(Boot::numbered(3)), Hold::InPlace("/var/lib/containerd/x".into()));
        BlobRecord { size: 7, state, hold, media_type: MediaType::new("a/b"), provenance }
    }

    #[test]
    fn sealed_and_back() {
        assert_eq!(unseal(&seal(&record()).unwrap()), Some(record()));
        let tag = TagRecord {
            digest: Digest::of(b"x"),
            media_type: MediaType::octet_stream(),
            size: 3,
            confirmed_at: 1_700_000_000,
        };
        assert_eq!(unseal(&seal(&tag).unwrap()), Some(tag));
    }

    #[test]
    fn trust_ends_with_the_boot_unless_synced() {
        let (this, other) = (Boot::numbered(1), Boot::numbered(2));
        assert!(State::Unsynced(this).is_trusted(this, 5) && State::Synced.is_trusted(other, 5));
        assert!(!State::Unsynced(this).is_trusted(other, 5) && !State::Suspect.is_trusted(this, 5));
        let theirs = State::Theirs { inode: 5 };
        assert!(theirs.is_trusted(other, 5) && !theirs.is_trusted(this, 6), "what containerd synced, and nothing else");
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_no_record(bit in 0usize..200) {
            let mut sealed = seal(&record()).unwrap();
            let bit = bit % (sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(unseal::<BlobRecord>(&sealed), None);
        }

        #[test]
        fn keys_and_back(bytes: Vec<u8>) {
            let digest = Digest::of(&bytes);
            prop_assert_eq!(digest_of(&key(&digest)), Some(digest));
            prop_assert_eq!(digest_of(&bytes).map(|digest| key(&digest)).unwrap_or(bytes.clone()), bytes);
        }
    }
}
