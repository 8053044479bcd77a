//! Copies of what runs here on other nodes, and of what runs there on this one.

use std::collections::BTreeMap;

use super::messages::MOST_WANTED;
use super::owner::held;
use super::{Backing, Inner, Peers};
use crate::cluster::copies::{WantedCopies, may_hold};
use crate::image::NodeId;

impl Peers {
    /// Who may have to hold copies of what runs here, and of what: as the members are now.
    #[must_use]
    pub fn may_hold_copies(&self, images: &[WantedCopies]) -> BTreeMap<NodeId, Vec<WantedCopies>> {
        match &self.0 {
            Backing::Cluster(inner) => inner.may_hold_copies(images),
            #[cfg(test)]
            Backing::Script(_) => BTreeMap::new(),
        }
    }

    /// Notes what runs here, and tells these nodes of it. It holds for a quarter of an hour, so it is to be said again every
    /// few minutes. Takes up to a second for each node that doesn't answer.
    pub async fn want_copies(&self, images: &[WantedCopies], told: BTreeMap<NodeId, Vec<WantedCopies>>) {
        match &self.0 {
            Backing::Cluster(inner) => inner.want_copies(images, told).await,
            #[cfg(test)]
            Backing::Script(_) => {}
        }
    }

    /// What others want to be here now.
    #[must_use]
    pub fn copies_here(&self) -> Vec<WantedCopies> {
        match &self.0 {
            Backing::Cluster(inner) => inner.copies_here(),
            #[cfg(test)]
            Backing::Script(_) => Vec::new(),
        }
    }
}

impl Inner {
    fn may_hold_copies(&self, images: &[WantedCopies]) -> BTreeMap<NodeId, Vec<WantedCopies>> {
        let ring = self.ring();
        let mut told: BTreeMap<NodeId, Vec<WantedCopies>> = BTreeMap::new();
        for wanted in images {
            for node in may_hold(&ring, &wanted.target, wanted.copies) {
                told.entry(node).or_default().push(wanted.clone());
            }
        }
        told
    }

    async fn want_copies(&self, images: &[WantedCopies], told: BTreeMap<NodeId, Vec<WantedCopies>>) {
        // Who runs it counts as one that has it, here too.
        self.copies_wanted(self.node, images.to_vec());
        // Nobody hurries: one after the other, so that the calls of many nodes don't meet.
        for (node, images) in told {
            for some in images.chunks(MOST_WANTED) {
                if let Err(error) = self.want(node, some).await {
                    tracing::debug!(peer = %node, %error, "a node can't be told what is to be copied");
                    break;
                }
            }
        }
    }

    /// `from` runs these.
    pub(super) fn copies_wanted(&self, from: NodeId, images: Vec<WantedCopies>) {
        held(&self.copies).told(self.now(), from, images);
    }

    fn copies_here(&self) -> Vec<WantedCopies> {
        held(&self.copies).here(self.now(), &self.ring())
    }
}
