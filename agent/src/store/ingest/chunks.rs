use std::collections::BTreeMap;

use crate::image::Hasher;
use crate::store::CHUNK;

/// Which bytes are there, and how far they are hashed.
#[derive(Debug)]
pub(super) struct State {
    pub(super) chunks: Vec<Chunk>,
    /// Chunks that an earlier process finished, and their checksums: missing as long as nobody has checked them.
    pub(super) recorded: BTreeMap<u32, u32>,
    /// Absent while a thread hashes.
    pub(super) hasher: Option<Hasher>,
    pub(super) hashed_to: u64,
}

/// What is there of a chunk.
#[derive(Debug, Clone)]
pub(super) enum Chunk {
    Missing,
    /// The first bytes are there.
    Filling {
        filled: u64,
        checksum: crc32fast::Hasher,
    },
    Present {
        checksum: u32,
    },
}

impl State {
    /// How far the bytes reach without a gap from `offset` on, at the most about to `limit`; of a blob of `size` bytes.
    pub(super) fn available(&self, offset: u64, limit: u64, size: u64) -> u64 {
        let mut end = offset;
        while end < limit {
            let index = end / CHUNK;
            let length = CHUNK.min(size - index * CHUNK);
            let filled = index * CHUNK + self.chunks[index as usize].filled(length);
            end = end.max(filled);
            if filled < index * CHUNK + length {
                break;
            }
        }
        end
    }

    /// How far the bytes of a chunk reach, as an offset in the blob.
    pub(super) fn stands(&self, index: u64, length: u64) -> u64 {
        index * CHUNK + self.chunks[index as usize].filled(length)
    }

    /// Takes bytes into a chunk's checksum, which is returned when the chunk is finished by them.
    pub(super) fn fill(&mut self, index: u64, bytes: &[u8], length: u64) -> Option<u32> {
        let chunk = &mut self.chunks[index as usize];
        let (filled, mut checksum) = match std::mem::replace(chunk, Chunk::Missing) {
            Chunk::Filling { filled, checksum } => (filled, checksum),
            // A chunk that follows one just filled in the same write begins here.
            _ => (0, crc32fast::Hasher::new()),
        };
        checksum.update(bytes);
        let filled = filled + bytes.len() as u64;
        if filled < length {
            *chunk = Chunk::Filling { filled, checksum };
            return None;
        }
        let checksum = checksum.finalize();
        *chunk = Chunk::Present { checksum };
        Some(checksum)
    }
}

impl Chunk {
    /// Bytes that are there, from its beginning on; of a chunk of `length` bytes.
    pub(super) const fn filled(&self, length: u64) -> u64 {
        match self {
            Self::Missing => 0,
            Self::Filling { filled, .. } => *filled,
            Self::Present { .. } => length,
        }
    }

    /// Its checksum, if all of it is there.
    pub(super) const fn checksum(&self) -> Option<u32> {
        match self {
            Self::Present { checksum } => Some(*checksum),
            _ => None,
        }
    }
}
