//! One blob arriving: a file that grows, the map of its chunks, and the running hash.
//!
//! Two files: `ingest/<algorithm>-<hex>.part` has the bytes, `.map` a header and one record for each chunk that was
//! finished, appended after its bytes were written. After `kill -9` the map is never ahead of the file; after a power
//! loss it may be, and the checksums tell.
//!
//! Whoever fetches a chunk writes it from where it stands to its end, in order; different chunks may arrive in any
//! order and at the same time. The hash runs along the frontier: the first byte that isn't there yet.

mod chunks;
mod file;
mod map;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use self::chunks::{Chunk, State};
use self::file::{reserve, write_all_vectored};
use self::map::{Recorded, header};
use super::CHUNK;
use crate::image::{Access, Digest, Hasher, Registry};

/// From where the bytes of an ingest come: what arrived under authorization is not continued for anyone else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The registry that delivers.
    pub registry: Registry,
    /// Whether it delivers to anyone.
    pub access: Access,
}

/// One blob arriving. All methods block on the disk: call them from a blocking thread.
#[derive(Debug)]
pub struct Ingest {
    digest: Digest,
    size: u64,
    path: PathBuf,
    origin: Origin,
    map_path: PathBuf,
    file: Arc<File>,
    map: File,
    state: Mutex<State>,
}

/// The proof that every byte of an ingest is there and that they hash to its digest. Only [`Ingest::verify`] makes
/// one, so what isn't verified can't be committed.
#[derive(Debug)]
pub struct Verified {
    pub(super) ingest: Arc<Ingest>,
    /// CRC-32 of each chunk, in order.
    pub(super) checksums: Vec<u32>,
}

/// The bytes are all there, and they are not what the digest says; or some are missing.
#[derive(Debug, thiserror::Error)]
#[error("the bytes hash to {found}, not to {expected}")]
pub struct Mismatch {
    /// The digest that was asked for.
    pub expected: Digest,
    /// The digest of what arrived.
    pub found: Digest,
}

impl Ingest {
    /// Opens what lies in `dir` for this digest, size and origin, or begins anew. Of what lies there, nothing counts before
    /// [`Self::recheck`] has found it sound. Room for the whole blob is reserved, where the filesystem can.
    ///
    /// # Errors
    /// `StorageFull` when there is no room for it; anything else that the disk says.
    pub(super) fn open(dir: &Path, digest: Digest, size: u64, origin: &Origin) -> io::Result<Self> {
        let stem = format!("{}-{}", digest.algorithm(), digest.hex());
        let path = dir.join(format!("{stem}.part"));
        let map_path = dir.join(format!("{stem}.map"));
        let recorded = Recorded::read(&map_path).filter(|r| r.size == size && r.permits(origin) && path.exists());

        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(recorded.is_none());
        let file = options.open(&path)?;
        reserve(&file, size)?;
        let mut map = OpenOptions::new().append(true).create(true).open(&map_path)?;
        let chunks = vec![Chunk::Missing; usize::try_from(size.div_ceil(CHUNK)).map_err(io::Error::other)?];
        let recorded = if let Some(recorded) = recorded {
            // A torn record at the end would shift all that follow.
            map.set_len(recorded.length)?;
            // Of two records of one chunk, the later one holds.
            recorded.chunks.into_iter().filter(|&(index, _)| (index as usize) < chunks.len()).collect()
        } else {
            map.set_len(0)?;
            map.write_all(&header(size, origin))?;
            BTreeMap::new()
        };
        let state = State { chunks, recorded, hasher: Some(digest.hasher()), hashed_to: 0 };
        let origin = origin.clone();
        Ok(Self { digest, size, origin, path, map_path, file: Arc::new(file), map, state: Mutex::new(state) })
    }

    /// The size of the blob that lies half arrived in `dir`, if it came from there, and to whoever that is.
    pub(super) fn resumable(dir: &Path, digest: &Digest, origin: &Origin) -> Option<u64> {
        let path = dir.join(format!("{}-{}.map", digest.algorithm(), digest.hex()));
        Recorded::read(&path).filter(|r| r.permits(origin)).map(|r| r.size)
    }

    /// The digest that the bytes shall have.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether its bytes come from there, and to whoever that is.
    pub(super) fn is_of(&self, origin: &Origin) -> bool {
        self.origin == *origin
    }

    /// The whole blob's length in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The file with the bytes.
    #[must_use]
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn map_path(&self) -> &Path {
        &self.map_path
    }

    /// How far the bytes reach without a gap from `offset` on; `offset` itself where there are none. Looks no further
    /// than some chunks ahead.
    #[must_use]
    pub fn available(&self, offset: u64) -> u64 {
        self.state().available(offset, self.size.min(offset + 4 * CHUNK), self.size)
    }

    /// The first byte at or after `offset` that isn't there and that nobody is known to have written: where a source
    /// has to begin. `None` when nothing is missing.
    #[must_use]
    pub fn first_gap(&self, offset: u64) -> Option<u64> {
        let end = self.state().available(offset, self.size, self.size);
        (end < self.size).then_some(end)
    }

    /// The first run of bytes that are missing, at or after the beginning of the chunk in which `offset` lies. It begins
    /// where its first chunk stands, and ends where a chunk begins of which something is there, or with the blob: whoever
    /// fetches it may write it from its beginning on. `None` when nothing is missing there.
    #[must_use]
    pub fn gap(&self, offset: u64) -> Option<Range<u64>> {
        let state = self.state();
        let stands = |index: u64| state.stands(index, self.chunk_len(index));
        let mut indices = offset / CHUNK..state.chunks.len() as u64;
        let first = indices.find(|&index| stands(index) < index * CHUNK + self.chunk_len(index))?;
        let end = indices.find(|&index| stands(index) > index * CHUNK).map_or(self.size, |index| index * CHUNK);
        Some(stands(first)..end)
    }

    /// Bytes that are there, in whole chunks or parts of them.
    #[must_use]
    pub fn present(&self) -> u64 {
        let state = self.state();
        (0..).zip(&state.chunks).map(|(index, chunk)| chunk.filled(self.chunk_len(index))).sum()
    }

    /// Checks what an earlier process left, chunk by chunk. What matches its checksum is there from then on; the rest
    /// stays missing.
    ///
    /// # Errors
    /// What the disk says on reading.
    pub fn recheck(&self) -> io::Result<()> {
        let mut buffer = Vec::new();
        let recorded = std::mem::take(&mut self.state().recorded);
        for (index, checksum) in recorded {
            let index = u64::from(index);
            buffer.resize(self.chunk_len(index) as usize, 0);
            let sound = match self.file.read_exact_at(&mut buffer, index * CHUNK) {
                Ok(()) => crc32fast::hash(&buffer) == checksum,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(e) => return Err(e),
            };
            let mut state = self.state();
            let chunk = &mut state.chunks[index as usize];
            // What somebody writes meanwhile is the writer's.
            if sound && matches!(chunk, Chunk::Missing) {
                *chunk = Chunk::Present { checksum };
                drop(state);
                self.hash(index * CHUNK, &[Bytes::from(std::mem::take(&mut buffer))])?;
            }
        }
        Ok(())
    }

    /// Writes the bytes that belong at `offset`; those that are there already are left as they are. Returns how many
    /// were: only bytes that were written may be hashed from memory.
    ///
    /// # Errors
    /// `StorageFull` and its like from the disk; `InvalidInput` for bytes beyond the blob's size, or beyond a part of
    /// their chunk that is missing.
    pub fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<u64> {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if offset + length > self.size {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes beyond the blob's end"));
        }
        let runs = self.missing(offset, parts)?;
        let mut finished = Vec::new();
        let mut written = 0;
        for (start, run) in runs {
            write_all_vectored(&self.file, start, &run)?;
            let mut state = self.state();
            let mut at = start;
            for piece in run {
                // No piece crosses the border of a chunk.
                let index = at / CHUNK;
                if let Some(checksum) = state.fill(index, &piece, self.chunk_len(index)) {
                    // There are fewer than 2^32 chunks in anything that a disk holds.
                    finished.extend_from_slice(&(index as u32).to_le_bytes());
                    finished.extend_from_slice(&checksum.to_le_bytes());
                }
                at += piece.len() as u64;
            }
            written += at - start;
        }
        if !finished.is_empty() {
            (&self.map).write_all(&finished)?;
        }
        Ok(length - written)
    }

    /// What of `parts` isn't there yet: runs of pieces that follow each other, none across the border of a chunk.
    fn missing(&self, offset: u64, parts: &[Bytes]) -> io::Result<Vec<(u64, Vec<Bytes>)>> {
        let state = self.state();
        let mut runs: Vec<(u64, Vec<Bytes>)> = Vec::new();
        let mut at = offset;
        // Where the chunk under way stands once what is in `runs` is written, and where the last run ends.
        let (mut reached, mut run_ends) = (0, None);
        for part in parts {
            let mut rest = part.clone();
            while !rest.is_empty() {
                let index = at / CHUNK;
                let length = self.chunk_len(index);
                let room = (length - at % CHUNK).min(rest.len() as u64);
                let mut piece = rest.split_to(room as usize);
                let stands = state.stands(index, length).max(reached);
                if stands < at {
                    let gap = "bytes beyond a part of their chunk that is missing";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, gap));
                }
                let there = (stands - at).min(room);
                at += room;
                if there == room {
                    continue;
                }
                let piece = piece.split_off(there as usize);
                match runs.last_mut() {
                    Some((_, run)) if run_ends == Some(stands) => run.push(piece),
                    _ => runs.push((stands, vec![piece])),
                }
                reached = at;
                run_ends = Some(at);
            }
        }
        Ok(runs)
    }

    /// Carries the running hash on: over `parts`, which have just been written, if it stands at `offset`; and over
    /// up to one [`CHUNK`] of what follows that is already on disk, so that no call takes long. Returns whether there is
    /// more to hash. Returns at once when another thread is hashing; that one goes on over what was written here.
    ///
    /// # Errors
    /// What the disk says when bytes have to be read again.
    pub fn hash(&self, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        let mut parts = Some(parts);
        let mut has_read = false;
        loop {
            let (mut hasher, from, to) = {
                let mut state = self.state();
                let from = state.hashed_to;
                let to = state.available(from, self.size.min(from + CHUNK), self.size);
                if to == from {
                    return Ok(false);
                }
                if has_read {
                    return Ok(true);
                }
                let Some(hasher) = state.hasher.take() else { return Ok(false) };
                (hasher, from, to)
            };
            let mut read = Ok(());
            let mut reached = from;
            match parts.take() {
                Some(parts) if from == offset => {
                    for part in parts {
                        hasher.update(part);
                        reached += part.len() as u64;
                    }
                }
                _ => {
                    let mut buffer = vec![0; (to - from) as usize];
                    has_read = true;
                    read = self.file.read_exact_at(&mut buffer, from);
                    if read.is_ok() {
                        hasher.update(&buffer);
                        reached += buffer.len() as u64;
                    }
                }
            }
            let mut state = self.state();
            state.hasher = Some(hasher);
            state.hashed_to = reached;
            read?;
        }
    }

    /// The hash over all bytes before `end`, for a reader that goes on from there with a source of its own.
    ///
    /// # Errors
    /// What the disk says; `UnexpectedEof` where the bytes aren't all there.
    pub fn hash_to(&self, end: u64) -> io::Result<Hasher> {
        if self.state().available(0, end, self.size) < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut hasher = self.digest.hasher();
        let mut buffer = vec![0; CHUNK as usize];
        let mut at = 0;
        while at < end {
            let piece = &mut buffer[..(end - at).min(CHUNK) as usize];
            self.file.read_exact_at(piece, at)?;
            hasher.update(piece);
            at += piece.len() as u64;
        }
        Ok(hasher)
    }

    /// Whether every byte is there and hashed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let state = self.state();
        state.hasher.is_some() && state.hashed_to == self.size
    }

    /// The proof that the blob is what its digest says.
    ///
    /// # Errors
    /// When it isn't, or isn't whole. The caller discards it then.
    pub fn verify(self: Arc<Self>) -> Result<Verified, Mismatch> {
        let (found, whole, checksums) = {
            let state = self.state();
            let hasher = state.hasher.clone().unwrap_or_else(|| self.digest.hasher());
            let checksums: Option<Vec<u32>> = state.chunks.iter().map(Chunk::checksum).collect();
            (hasher.finish(), state.hashed_to == self.size, checksums)
        };
        match checksums {
            Some(checksums) if whole && found == self.digest => Ok(Verified { ingest: self, checksums }),
            _ => Err(Mismatch { expected: self.digest, found }),
        }
    }

    /// Removes its files. Readers that have them open go on reading what is there.
    ///
    /// # Errors
    /// What the disk says, other than that they are gone already.
    pub fn discard(&self) -> io::Result<()> {
        for path in [&self.map_path, &self.path] {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    fn chunk_len(&self, index: u64) -> u64 {
        CHUNK.min(self.size - index * CHUNK)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; were it so, the state is whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
