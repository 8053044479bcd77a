use std::collections::HashMap;

use super::handle::Store;
use super::provenance::Provenance;
use super::record::{BlobRecord, Hold};
use crate::image::Digest;

/// Whose bytes of the disk a blob has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// Ours alone: dropping it frees them.
    Own,
    /// In the store, on the same bytes as containerd's: dropping it frees nothing for as long as containerd has it.
    Shared,
    /// In containerd's content store alone, and served from there.
    InPlace,
}

/// That a blob is held, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Bytes.
    pub size: u64,
    /// Whose they are.
    pub held: Held,
}

impl Store {
    /// Whether and how a blob is held, as the index has it: no file is looked at, nothing is opened.
    pub async fn holding(&self, digest: &Digest) -> Option<Holding> {
        self.holdings(vec![*digest]).await.pop().flatten()
    }

    /// The same of many at once, in their order; for a few thousand.
    pub async fn holdings(&self, digests: Vec<Digest>) -> Vec<Option<Holding>> {
        let count = digests.len();
        let records = self.run(move |shelves| shelves.index.records_of(&digests)).await;
        let holdings = records.map(|records| records.iter().map(|record| record.as_ref().map(Holding::of)).collect());
        holdings.unwrap_or_else(|| vec![None; count])
    }

    /// Where those of them came from that are held, as the index has it; for a few thousand.
    pub async fn provenances(&self, digests: Vec<Digest>) -> HashMap<Digest, Provenance> {
        let found = self.run(move |shelves| {
            let records = shelves.index.records_of(&digests).into_iter();
            let known = digests.into_iter().zip(records);
            known.filter_map(|(digest, record)| Some((digest, record?.provenance))).collect()
        });
        found.await.unwrap_or_default()
    }

    /// When each was last used, in their order, in milliseconds since 1970; 0 for never.
    pub async fn last_used(&self, digests: Vec<Digest>) -> Vec<u64> {
        let count = digests.len();
        let times = self.run(move |shelves| shelves.index.last_used_of(&digests)).await;
        times.unwrap_or_else(|| vec![0; count])
    }
}

impl Holding {
    fn of(record: &BlobRecord) -> Self {
        Self { size: record.size, held: record.hold.held() }
    }
}

impl Hold {
    pub(super) const fn held(&self) -> Held {
        match self {
            Self::Own => Held::Own,
            Self::Linked | Self::Cloned => Held::Shared,
            Self::InPlace(_) => Held::InPlace,
        }
    }
}
