//! The map beside the bytes, as it lies on disk: a header, then 8 bytes for each finished chunk (its number and its
//! checksum, both little-endian), appended after the chunk was written.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::Origin;
use crate::image::{Access, Registry};

const MAGIC: &[u8; 8] = b"LARDER01";
/// The bytes of one record.
pub(super) const RECORD: usize = 8;

pub(super) fn header(size: u64, origin: &Origin) -> Vec<u8> {
    let registry = origin.registry.as_str().as_bytes();
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&size.to_le_bytes());
    header.push(u8::from(origin.access == Access::Authorized));
    // A registry's name has at most 255 bytes.
    header.push(registry.len() as u8);
    header.extend_from_slice(registry);
    header
}

/// What a map says.
pub(super) struct Recorded {
    pub(super) size: u64,
    registry: Registry,
    access: Access,
    /// Finished chunks and their checksums.
    pub(super) chunks: Vec<(u32, u32)>,
    /// Up to the last whole record.
    pub(super) length: u64,
}

impl Recorded {
    pub(super) fn read(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        File::open(path).ok()?.read_to_end(&mut bytes).ok()?;
        let rest = bytes.strip_prefix(MAGIC)?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (&[authorized, length], rest) = rest.split_first_chunk::<2>()?;
        let (registry, records) = rest.split_at_checked(length as usize)?;
        let record = |r: &[u8]| {
            let (index, checksum) = r.split_first_chunk::<4>()?;
            Some((u32::from_le_bytes(*index), u32::from_le_bytes(checksum.try_into().ok()?)))
        };
        Some(Self {
            size: u64::from_le_bytes(*size),
            registry: std::str::from_utf8(registry).ok()?.parse().ok()?,
            access: if authorized == 0 { Access::Anonymous } else { Access::Authorized },
            chunks: records.chunks_exact(RECORD).map(record).collect::<Option<_>>()?,
            length: (bytes.len() - records.len() % RECORD) as u64,
        })
    }

    pub(super) fn permits(&self, origin: &Origin) -> bool {
        self.access == origin.access && self.registry == origin.registry
    }
}
