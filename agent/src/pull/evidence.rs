use jiff::Timestamp;
use tokio::sync::broadcast;

use super::{Inner, Place, Pull};
use crate::image::{Digest, Reference};
use crate::upstream::Upstream;

/// How many are kept for who is slow to take them; what is older is lost.
const MOST: usize = 256;

/// An upstream gave a manifest to somebody who pulled: it is there, for who may have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The repository.
    pub place: Place,
    /// What was asked for.
    pub reference: Reference,
    /// What it meant.
    pub digest: Digest,
    /// The upstream's URL.
    pub upstream: String,
    /// When.
    pub at: Timestamp,
}

impl Pull {
    /// What upstreams give to those who pull, from now on. Who is slow to take it misses what is oldest.
    #[must_use]
    pub fn evidence(&self) -> broadcast::Receiver<Evidence> {
        self.0.evidence.subscribe()
    }
}

impl Inner {
    /// An upstream gave a manifest. Never waits.
    pub(super) fn has_given(&self, upstream: &Upstream, place: &Place, reference: Reference, digest: Digest) {
        let (place, upstream, at) = (place.clone(), upstream.url().to_string(), Timestamp::now());
        // An error means that nobody wants to know.
        let _ = self.evidence.send(Evidence { place, reference, digest, upstream, at });
    }
}

pub(super) fn channel() -> broadcast::Sender<Evidence> {
    broadcast::Sender::new(MOST)
}
