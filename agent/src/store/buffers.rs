use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::CHUNK;
use super::locks::held;

/// How many free buffers are kept for the next reader. Beyond, they go back to the system: slow readers may hold as
/// many as they are, and never make another wait.
const KEPT: usize = 16;
/// What is smaller gets a buffer of its own size: a manifest needs no megabyte.
const SMALL: usize = 256 << 10;

/// Buffers of one chunk, used again and again: a fresh megabyte costs 256 page faults.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Mutex<Vec<Box<[u8]>>>,
    in_use: AtomicBool,
}

impl Buffers {
    /// A buffer of `len` bytes, at most [`CHUNK`], with whatever was in it before.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        debug_assert!(len as u64 <= CHUNK);
        if len < SMALL {
            return Buffer { bytes: vec![0; len].into_boxed_slice(), len, home: None };
        }
        self.in_use.store(true, Ordering::Relaxed);
        let free = held(&self.free).pop();
        let bytes = free.unwrap_or_else(|| vec![0; CHUNK as usize].into_boxed_slice());
        Buffer { bytes, len, home: Some(Arc::clone(self)) }
    }

    /// Called now and then: when nobody read since the last time, the free buffers go back to the system.
    pub(super) fn trim(&self) {
        if !self.in_use.swap(false, Ordering::Relaxed) {
            held(&self.free).clear();
        }
    }
}

/// One chunk's bytes. Goes back to where it came from when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Option<Arc<Buffers>>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut free = held(&home.free);
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_are_trimmed() {
        let buffers = Arc::new(Buffers::default());
        let many: Vec<_> = (0..KEPT + 4).map(|_| buffers.take(CHUNK as usize)).collect();
        let first = many[0].as_ref().as_ptr();
        assert_eq!(buffers.take(100).as_ref().len(), 100);
        drop(many);
        assert_eq!(held(&buffers.free).len(), KEPT);
        assert_eq!(buffers.take(CHUNK as usize - 1).as_ref().len(), CHUNK as usize - 1);
        assert!(held(&buffers.free).iter().any(|buffer| buffer.as_ptr() == first), "the same memory is used again");
        buffers.trim();
        assert_eq!(held(&buffers.free).len(), KEPT, "not while there are readers");
        buffers.trim();
        assert_eq!(held(&buffers.free).len(), 0);
    }
}
