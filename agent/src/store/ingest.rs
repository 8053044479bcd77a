use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CHUNK;
use crate::image::Digest;

/// One blob arriving: `ingest/<algorithm>-<hex>.part`, and a map of its chunks beside it.
#[derive(Debug)]
pub struct Ingest {
    digest: Digest,
    size: u64,
    path: PathBuf,
    map_path: PathBuf,
    file: Arc<File>,
}

/// Bytes that are proven to be those of their digest. Only [`Ingest::verify`] makes one.
#[derive(Debug)]
pub struct Verified {
    pub(super) ingest: Arc<Ingest>,
    pub(super) checksums: Vec<u32>,
}

/// What arrived is not what its digest says.
#[derive(Debug, thiserror::Error)]
#[error("what arrived is not {0}")]
pub struct Mismatch(Digest);

impl Ingest {
    /// Opens what lies in `dir` for this digest and size, or makes it.
    pub(super) fn open(dir: &Path, digest: Digest, size: u64) -> io::Result<Self> {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        let (path, map_path) = (dir.join(format!("{name}.part")), dir.join(format!("{name}.map")));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        File::options().append(true).create(true).open(&map_path)?;
        Ok(Self { digest, size, path, map_path, file: Arc::new(file) })
    }

    /// What arrives.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes that it will have.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its bytes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The map of its chunks.
    #[must_use]
    pub fn map_path(&self) -> &Path {
        &self.map_path
    }

    /// Its bytes, open.
    #[must_use]
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Proves that the bytes are those of the digest.
    ///
    /// # Errors
    /// When they aren't, or can't be read.
    pub fn verify(self: Arc<Self>) -> Result<Verified, Mismatch> {
        let mut bytes = vec![0; usize::try_from(self.size).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, 0).map_err(|_| Mismatch(self.digest))?;
        let mut hasher = self.digest.hasher();
        hasher.update(&bytes);
        if hasher.finish() != self.digest {
            return Err(Mismatch(self.digest));
        }
        let checksums = bytes.chunks(CHUNK as usize).map(crc32fast::hash).collect();
        Ok(Verified { ingest: self, checksums })
    }

    /// Removes its files.
    ///
    /// # Errors
    /// What the disk says.
    pub fn discard(&self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        fs::remove_file(&self.map_path)
    }
}
