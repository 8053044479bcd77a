use std::io;
use std::path::{Path, PathBuf};

use crate::image::Digest;

/// Why a store can't be opened at all. A folder that is read-only, full or impossible to make is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works in the folder.
    #[error("another process holds {path}: stop it, or give each its own cache.dir")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The system gives us no thread.
    #[error("can't start a thread for the store")]
    Thread(#[source] io::Error),
}

/// Why a blob isn't stored while it arrives. Each means: stream it through.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The disk is full, or was moments ago.
    #[error("the store's disk is full")]
    Full,
    /// Nothing can be written there.
    #[error("the store can't be written to")]
    NotWritable,
    /// It would not fit within the store's bounds even if everything else went.
    #[error("a blob of {size} bytes exceeds what the store may hold")]
    TooLarge {
        /// Bytes.
        size: u64,
    },
    /// The same digest is arriving already, from elsewhere, for somebody else, or with another size.
    #[error("{digest} is arriving already, elsewhere or with another size ({size} bytes)")]
    Busy {
        /// Which blob.
        digest: Digest,
        /// The size it arrives with, in bytes.
        size: u64,
    },
    /// The disk doesn't answer in time.
    #[error("the store's disk does not answer")]
    Stuck,
    /// The disk refuses.
    #[error("can't prepare {path}")]
    Io {
        /// What was being opened.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a verified blob wasn't kept. Its bytes are good all the same.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The disk is full, or was moments ago.
    #[error("the store's disk is full")]
    Full,
    /// Nothing can be written there.
    #[error("the store can't be written to")]
    NotWritable,
    /// It would not fit within the store's bounds even if everything else went.
    #[error("a blob of {size} bytes exceeds what the store may hold")]
    TooLarge {
        /// Bytes.
        size: u64,
    },
    /// The bytes given are no bytes of this digest.
    #[error("the bytes are not those of {digest}")]
    Mismatch {
        /// The name that they were given under.
        digest: Digest,
    },
    /// The disk doesn't answer in time.
    #[error("the store's disk does not answer")]
    Stuck,
    /// The disk refuses.
    #[error("can't put {path} in place")]
    Io {
        /// Where the blob belongs.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a blob of containerd's isn't taken into the store. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It isn't there, or not any more.
    #[error("there is no file at {path}, or not any more")]
    Gone {
        /// Where it was said to be.
        path: PathBuf,
    },
    /// It is longer or shorter than it was said to be.
    #[error("{path} has {size} bytes and not {expected}")]
    Size {
        /// Where it is.
        path: PathBuf,
        /// What it has, in bytes.
        size: u64,
        /// What it was said to have, in bytes.
        expected: u64,
    },
    /// Its bytes are not what its name says. Said again at once, without another look, for as long as it is that file.
    #[error("{path} is not {digest}: its bytes are wrong")]
    Wrong {
        /// Where it is.
        path: PathBuf,
        /// What it was said to be.
        digest: Digest,
    },
    /// The store has no folder.
    #[error("the store has no folder")]
    NoFolder,
    /// The store is ending.
    #[error("the store is ending")]
    Ending,
    /// The disk refuses.
    #[error("can't use {path}")]
    Io {
        /// What was read, or put in place.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a reader can't go on. What it gave before was right.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A chunk isn't what was committed: the disk changed it. [`Store::set_aside`](super::Store::set_aside) is next.
    #[error("chunk {chunk} of {digest} is not what was committed: it rotted on disk")]
    Rotten {
        /// Which blob.
        digest: Digest,
        /// Which chunk, from 0.
        chunk: u64,
    },
    /// The file ends early: somebody cut it. [`Store::set_aside`](super::Store::set_aside) is next.
    #[error("the file of {digest} ends in chunk {chunk}, before its {size} bytes")]
    Truncated {
        /// Which blob.
        digest: Digest,
        /// Which chunk, from 0.
        chunk: u64,
        /// What it should have, in bytes.
        size: u64,
    },
    /// The disk doesn't answer in time.
    #[error("the disk did not give chunk {chunk} of {digest} in time")]
    Stuck {
        /// Which blob.
        digest: Digest,
        /// Which chunk, from 0.
        chunk: u64,
    },
    /// The disk refuses. Where it says that it has lost the bytes, [`Store::set_aside`](super::Store::set_aside) is next.
    #[error("can't read chunk {chunk} of {digest}")]
    Io {
        /// Which blob.
        digest: Digest,
        /// Which chunk, from 0.
        chunk: u64,
        /// Why.
        source: io::Error,
    },
}

impl ReadError {
    /// Whether the blob's file is at fault, and the blob is to be set aside.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Rotten { .. } | Self::Truncated { .. } => true,
            Self::Io { source, .. } => are_lost(source),
            Self::Stuck { .. } => false,
        }
    }
}

/// Whether a disk that gave this error to a read has lost the bytes: a bad sector, or what a filesystem with checksums of
/// its own calls wrong. To ask again is no help then, and the same bytes can be had from elsewhere.
pub(super) fn are_lost(error: &io::Error) -> bool {
    use nix::libc::{EBADMSG, EIO, EUCLEAN};
    matches!(error.raw_os_error(), Some(EIO | EBADMSG | EUCLEAN))
}

impl CommitError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        match super::space::Trouble::of(&source) {
            Some(super::space::Trouble::Full) => Self::Full,
            Some(super::space::Trouble::ReadOnly) => Self::NotWritable,
            None => Self::Io { path: path.to_owned(), source },
        }
    }
}

impl IngestError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        match super::space::Trouble::of(&source) {
            Some(super::space::Trouble::Full) => Self::Full,
            Some(super::space::Trouble::ReadOnly) => Self::NotWritable,
            None => Self::Io { path: path.to_owned(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_sector_is_damage_and_a_refusal_is_none() {
        let digest = Digest::of(b"one");
        let refused = |errno| ReadError::Io { digest, chunk: 0, source: io::Error::from_raw_os_error(errno) };
        // A file of the kernel's that gives what a bad sector gives.
        let bad = std::os::unix::fs::FileExt::read_at(&std::fs::File::open("/proc/self/mem").unwrap(), &mut [0], 0);
        assert!(ReadError::Io { digest, chunk: 0, source: bad.unwrap_err() }.is_damage());
        assert!(refused(nix::libc::EBADMSG).is_damage());
        assert!(!refused(nix::libc::EACCES).is_damage() && !refused(nix::libc::ESTALE).is_damage());
        assert!(!ReadError::Stuck { digest, chunk: 0 }.is_damage());
    }
}
