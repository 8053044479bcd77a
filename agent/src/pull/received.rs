use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a transfer received, and from where.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// Bytes, as [`ORIGINS`] has them.
    bytes: [AtomicU64; ORIGINS.len()],
    /// The names of the upstreams that its bytes first came from, here or at the peers that they came by.
    sources: Mutex<BTreeSet<String>>,
}

/// By whom bytes are received, as logs and metrics name it.
pub(super) const ORIGINS: [&str; 2] = ["upstream", "peer"];

/// One of [`ORIGINS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Upstream,
    Peer,
}

/// Upstreams that are named: more than a chain of them has. A peer could name any number.
const MOST: usize = 32;

impl Received {
    pub(super) fn add(&self, by: By, bytes: u64) {
        self.bytes[by as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes.
    pub(super) fn bytes(&self) -> [u64; ORIGINS.len()] {
        self.bytes.each_ref().map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// Bytes of these upstreams are in it.
    pub(super) fn name<'a>(&self, sources: impl IntoIterator<Item = &'a str>) {
        let mut known = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        for source in sources {
            if known.len() < MOST && !known.contains(source) {
                known.insert(source.to_owned());
            }
        }
    }

    /// The upstreams whose bytes are in it.
    pub(super) fn sources(&self) -> Vec<String> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
