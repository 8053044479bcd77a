use std::fs::File;
use std::io::{self, IoSlice};

use bytes::Bytes;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::store::CHUNK;

/// Reserves room for `size` bytes, where the filesystem can. Where so few are left that one chunk is too many, a write
/// finds out as soon.
pub(super) fn reserve(file: &File, size: u64) -> io::Result<()> {
    if size <= CHUNK {
        return Ok(());
    }
    let length = i64::try_from(size).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        // Filesystems without it find out while writing.
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Writes all of `parts`, one after the other, from `offset` on.
pub(super) fn write_all_vectored(file: &File, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        // The kernel takes at most 1,024 slices a call.
        let some = &slices[..slices.len().min(1024)];
        let written = nix::sys::uio::pwritev(file, some, i64::try_from(offset).map_err(io::Error::other)?)?;
        if written == 0 && some.iter().any(|slice| !slice.is_empty()) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += written as u64;
        IoSlice::advance_slices(&mut slices, written);
        if written == 0 {
            break;
        }
    }
    Ok(())
}
