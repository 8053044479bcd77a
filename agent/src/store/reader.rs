use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::task::JoinHandle;

use super::CHUNK;
use super::blob::{Opened, Reading};
use super::buffers::Buffer;
use super::errors::ReadError;
use super::hands::Hands;
use crate::image::Digest;

/// A range of a blob, a piece of at most [`CHUNK`] bytes at a time.
///
/// What the page cache has is read right where the caller runs; what must come from the disk is read off the runtime's
/// threads, one chunk ahead. Every chunk is held against its checksum before any of it is given.
#[derive(Debug)]
pub struct BlobReader {
    opened: Arc<Opened>,
    at: u64,
    end: u64,
    ahead: Option<Ahead>,
}

/// A chunk that is being read.
#[derive(Debug)]
struct Ahead {
    chunk: u64,
    task: JoinHandle<Result<Loaded, ReadError>>,
}

#[derive(Debug)]
struct Loaded {
    bytes: Bytes,
    /// Whether the disk was waited for; then the next chunk is likely to need that too.
    waited: bool,
}

impl BlobReader {
    pub(super) fn new(opened: Arc<Opened>, range: Range<u64>) -> Self {
        let end = range.end.min(opened.size);
        Self { at: range.start.min(end), end, opened, ahead: None }
    }

    /// Which blob it reads, from which file.
    pub(super) fn file(&self) -> (Digest, Arc<File>) {
        (self.opened.digest, Arc::clone(&self.opened.file))
    }

    /// Whether the bytes are read from containerd's own file.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.opened.is_in_place
    }

    /// Bytes that are left.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.end - self.at
    }

    /// The next bytes; `None` at the end. May be dropped while it waits, and called again.
    ///
    /// # Errors
    /// A [`ReadError`] for the chunk that comes next: none of its bytes were given. Calling again tries again.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let chunk = self.at / CHUNK;
        let bytes = self.load(chunk).await?;
        let begin = chunk * CHUNK;
        // Both are within the chunk, so they fit.
        let from = (self.at - begin) as usize;
        let to = (self.end - begin).min(bytes.len() as u64) as usize;
        self.at = begin + to as u64;
        Ok(Some(if from == 0 && to == bytes.len() { bytes } else { bytes.slice(from..to) }))
    }

    async fn load(&mut self, chunk: u64) -> Result<Bytes, ReadError> {
        let ahead = match self.ahead.take_if(|ahead| ahead.chunk == chunk) {
            Some(ahead) => ahead,
            None => match self.opened.read_cached(chunk)? {
                Cached::Whole(buffer) => return self.opened.checked(chunk, buffer),
                Cached::Part(buffer, filled) => self.begin(chunk, buffer, filled).await?,
            },
        };
        // Kept while it is waited for, so that a wait that is given up can be taken up again.
        let task = &mut self.ahead.insert(ahead).task;
        let done = Hands::finish(task).await;
        self.ahead = None;
        let digest = self.opened.digest;
        let loaded = done.map_err(|_| ReadError::Stuck { digest, chunk })??;
        let next = chunk + 1;
        if loaded.waited && next * CHUNK < self.end {
            self.ahead = self.opened.try_begin(next);
        }
        Ok(loaded.bytes)
    }

    async fn begin(&self, chunk: u64, buffer: Buffer, filled: usize) -> Result<Ahead, ReadError> {
        let opened = Arc::clone(&self.opened);
        let begun = self.opened.reading.hands.begin(move || opened.read_whole(chunk, buffer, filled)).await;
        match begun {
            Ok(task) => Ok(Ahead { chunk, task }),
            Err(_) => Err(ReadError::Stuck { digest: self.opened.digest, chunk }),
        }
    }
}

enum Cached {
    Whole(Buffer),
    /// So many bytes were in the page cache.
    Part(Buffer, usize),
}

impl Opened {
    fn chunk_len(&self, chunk: u64) -> usize {
        // At most `CHUNK`.
        self.size.saturating_sub(chunk * CHUNK).min(CHUNK) as usize
    }

    /// Reads as much of a chunk as the page cache has.
    fn read_cached(&self, chunk: u64) -> Result<Cached, ReadError> {
        let mut buffer = self.reading.buffers.take(self.chunk_len(chunk));
        let filled = match read_now(&self.file, buffer.as_mut(), chunk * CHUNK) {
            Ok(filled) => filled,
            Err(source) => return Err(ReadError::Io { digest: self.digest, chunk, source }),
        };
        if filled == buffer.as_ref().len() { Ok(Cached::Whole(buffer)) } else { Ok(Cached::Part(buffer, filled)) }
    }

    fn try_begin(self: &Arc<Self>, chunk: u64) -> Option<Ahead> {
        let opened = Arc::clone(self);
        let task = self.reading.hands.try_start(move || {
            let mut buffer = opened.reading.buffers.take(opened.chunk_len(chunk));
            let filled = read_now(&opened.file, buffer.as_mut(), chunk * CHUNK).unwrap_or(0);
            opened.read_whole(chunk, buffer, filled)
        })?;
        Some(Ahead { chunk, task })
    }

    /// Reads the rest of a chunk, waiting for the disk.
    fn read_whole(&self, chunk: u64, mut buffer: Buffer, filled: usize) -> Result<Loaded, ReadError> {
        let waited = filled < buffer.as_ref().len();
        if waited {
            let rest = &mut buffer.as_mut()[filled..];
            self.file.read_exact_at(rest, chunk * CHUNK + filled as u64).map_err(|source| {
                if source.kind() == io::ErrorKind::UnexpectedEof {
                    ReadError::Truncated { digest: self.digest, chunk, size: self.size }
                } else {
                    ReadError::Io { digest: self.digest, chunk, source }
                }
            })?;
        }
        Ok(Loaded { bytes: self.checked(chunk, buffer)?, waited })
    }

    fn checked(&self, chunk: u64, buffer: Buffer) -> Result<Bytes, ReadError> {
        self.reading.reads.fetch_add(1, Ordering::Relaxed);
        let expected = usize::try_from(chunk).ok().and_then(|at| self.checksums.get(at));
        if expected == Some(&crc32fast::hash(buffer.as_ref())) {
            Ok(Bytes::from_owner(buffer))
        } else {
            Err(ReadError::Rotten { digest: self.digest, chunk })
        }
    }
}

impl Reading {
    /// How many chunks were served so far: whether somebody reads.
    pub(super) fn count(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Reads `len` bytes, at most [`CHUNK`], of a file that grows; they have been written.
    pub(super) async fn read(&self, file: Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = self.buffers.take(len.min(CHUNK as usize));
        let filled = read_now(&file, buffer.as_mut(), offset)?;
        if filled == buffer.as_ref().len() {
            return Ok(Bytes::from_owner(buffer));
        }
        let rest = self.hands.run(move || {
            file.read_exact_at(&mut buffer.as_mut()[filled..], offset + filled as u64)
                .map(|()| Bytes::from_owner(buffer))
        });
        rest.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Reads a chunk, waiting for the disk. `lightly`: what the page cache didn't have it is not left with, since nobody is
/// about to read it.
pub(super) fn read_chunk(file: &File, buffer: &mut [u8], offset: u64, lightly: bool) -> io::Result<()> {
    let filled = read_now(file, buffer, offset)?;
    if filled == buffer.len() {
        return Ok(());
    }
    file.read_exact_at(&mut buffer[filled..], offset + filled as u64)?;
    if lightly && let Some(rest) = NonZeroU64::new((buffer.len() - filled) as u64) {
        // Where it is refused the cache is a little fuller.
        let _ = rustix::fs::fadvise(file, offset + filled as u64, Some(rest), Advice::DontNeed);
    }
    Ok(())
}

/// Reads what can be read without waiting for the disk; 0 where that can't be told.
fn read_now(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => return Ok(read),
            Err(Errno::INTR) => {}
            // Not in the cache; or a filesystem, a kernel or a sandbox that doesn't know the flag.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}
