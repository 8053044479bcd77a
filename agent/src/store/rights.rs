//! What is remembered of who may read what: whether a repository opens to anybody, and, as keyed hashes alone, which
//! credentials opened it.

use super::handle::Store;
use super::record::Openness;
use crate::image::{Access, Registry, Repository};

impl Store {
    /// Whether a repository opened to an anonymous caller when that was last found out, and when, in seconds since 1970.
    pub async fn openness(&self, registry: &Registry, repository: &Repository) -> Option<(Access, u64)> {
        let (registry, repository) = (registry.clone(), repository.clone());
        let openness = self.run(move |shelves| shelves.index.openness(&registry, &repository)).await.flatten()?;
        Some((openness.access, openness.found_at))
    }

    /// Notes that a repository opens to anybody, or to nobody without credentials, as of `found_at`, in seconds since
    /// 1970.
    pub async fn note_openness(&self, registry: &Registry, repository: &Repository, access: Access, found_at: u64) {
        let (registry, repository) = (registry.clone(), repository.clone());
        let openness = Openness { access, found_at };
        self.run(move |shelves| shelves.index.note_openness(&registry, &repository, openness)).await;
    }

    /// A hash under the key of this store, which lies in a file of its folder. Never waits.
    #[must_use]
    pub fn keyed_hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.shelves().secret.hash(parts)
    }

    /// Remembers that what has this [keyed hash](Self::keyed_hash) held at `at`, in seconds since 1970. The 65,536
    /// latest are kept.
    pub async fn remember(&self, hash: [u8; 32], at: u64) {
        self.run(move |shelves| shelves.index.remember(hash, Some(at))).await;
    }

    /// When that last held, in seconds since 1970.
    pub async fn remembered(&self, hash: [u8; 32]) -> Option<u64> {
        self.run(move |shelves| shelves.index.remembered(&hash)).await.flatten()
    }

    /// It holds no longer.
    pub async fn forget(&self, hash: [u8; 32]) {
        self.run(move |shelves| shelves.index.remember(hash, None)).await;
    }

    /// Forgets what was remembered before `before`, in seconds since 1970.
    pub async fn forget_before(&self, before: u64) {
        self.run(move |shelves| shelves.index.forget_before(before)).await;
    }
}
