use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::{Digest, ImageName, MediaType};
use crate::store::{Records, Store};

/// A later use is written down when it is later by so much, in milliseconds: what is lost by a crash is no more.
const WORTH_WRITING: u64 = 600_000;

/// What is remembered of an image, also when containerd doesn't have it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// What the name meant here last.
    pub(super) target: Digest,
    /// That one's type.
    pub(super) media_type: MediaType,
    /// When something on this node last used it, in milliseconds since 1970.
    pub(super) used: u64,
    /// Until when it is wanted though nothing has used it, in seconds since 1970.
    #[serde(default)]
    pub(super) prefetched_until: Option<u64>,
    /// Whether it was in use when that was last known.
    #[serde(default)]
    pub(super) in_use: bool,
}

/// A moment as it is remembered, in milliseconds since 1970.
pub(super) fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

/// An image, and the last use of it that was written down.
#[derive(Debug)]
struct Entry {
    known: Remembered,
    written: u64,
}

/// The images that this node remembers, over restarts.
#[derive(Debug)]
pub(super) struct Memory {
    store: Store,
    images: Mutex<BTreeMap<ImageName, Entry>>,
    /// Those that were dropped, until somebody looks whether containerd has them still.
    dropped: Mutex<HashSet<ImageName>>,
    /// Of the images that are remembered, those that were dropped since anything used them. A new process gives each
    /// another chance.
    had_to_go: Mutex<HashSet<ImageName>>,
}

impl Memory {
    /// What the store has of it.
    pub(super) async fn load(store: Store) -> Self {
        let records = store.records::<Remembered>(Records::Images).await;
        let images = records.into_iter().filter_map(|(name, known)| {
            let written = known.used;
            Some((name.parse().ok()?, Entry { known, written }))
        });
        let images = Mutex::new(images.collect());
        Self { store, images, dropped: Mutex::default(), had_to_go: Mutex::default() }
    }

    /// All of them.
    pub(super) fn all(&self) -> BTreeMap<ImageName, Remembered> {
        self.images().iter().map(|(name, entry)| (name.clone(), entry.known.clone())).collect()
    }

    /// Remembers an image as it is now.
    pub(super) async fn note(&self, name: &ImageName, known: Remembered) {
        if known.in_use || known.prefetched_until.is_some() {
            held(&self.had_to_go).remove(name);
        }
        {
            let mut images = self.images();
            if let Some(entry) = images.get_mut(name) {
                let is_worth_writing = entry.is_outdated_by(&known);
                entry.known = known.clone();
                if !is_worth_writing {
                    return;
                }
            }
            let written = known.used;
            images.insert(name.clone(), Entry { known: known.clone(), written });
        }
        self.store.record(Records::Images, &name.to_string(), Some(&known)).await;
    }

    /// It has gone.
    pub(super) async fn forget(&self, name: &ImageName) {
        held(&self.had_to_go).remove(name);
        if self.images().remove(name).is_some() {
            self.store.record::<Remembered>(Records::Images, &name.to_string(), None).await;
        }
    }

    /// It was dropped.
    pub(super) fn drop(&self, name: &ImageName) {
        held(&self.dropped).insert(name.clone());
        held(&self.had_to_go).insert(name.clone());
    }

    /// Whether it was dropped since this was last asked.
    pub(super) fn was_dropped(&self, name: &ImageName) -> bool {
        held(&self.dropped).remove(name)
    }

    /// Whether it was dropped, and nothing has used it since.
    pub(super) fn had_to_go(&self, name: &ImageName) -> bool {
        held(&self.had_to_go).contains(name)
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<ImageName, Entry>> {
        held(&self.images)
    }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    fn is_outdated_by(&self, now: &Remembered) -> bool {
        let is_same = Remembered { used: self.known.used, ..now.clone() } == self.known;
        !is_same || now.used.abs_diff(self.written) >= WORTH_WRITING
    }
}
