//! What would be if no registry answered.

use super::{Inner, Place, Pull};
use crate::image::{Access, Digest, ImageName, Reference, Registry};

impl Pull {
    /// Whether a pull of an image would get it from here or from other nodes, if no registry answered: the name would still
    /// mean something, and somebody may have it: anybody, or who could pull it through this node before. That its blobs
    /// are there is for the caller to see to. `target`: what the name means here; `blobs`: what the image is made of.
    pub async fn would_give(&self, name: &ImageName, target: &Digest, blobs: &[Digest]) -> bool {
        let place = Place::from(name);
        let meant = match &name.reference {
            Reference::Digest(_) => *target,
            Reference::Tag(tag) => match self.0.store.tag(&place.registry, &place.repository, tag).await {
                Some(record) => record.digest,
                None => return false,
            },
        };
        self.0.would_be_given(&place, &meant, meant == *target).await && !self.0.withholds(&place.registry, blobs).await
    }
}

impl Inner {
    /// `is_held`: it is known to be here, or at another node.
    async fn would_be_given(&self, place: &Place, manifest: &Digest, is_held: bool) -> bool {
        let openness = self.openness(place).await;
        match self.store.blob(manifest).await.map(|blob| blob.provenance()) {
            Some(provenance) if !provenance.may_be_given_for(&place.registry) => return false,
            Some(provenance) if provenance.is_public() && openness != Some(Access::Authorized) => return true,
            None if !is_held => return false,
            None if openness == Some(Access::Anonymous) => return true,
            _ => {}
        }
        self.was_opened(place).await
    }

    /// Whether credentials of anybody opened a repository through this node, and are remembered.
    async fn was_opened(&self, place: &Place) -> bool {
        self.is_remembered(self.somebody(place)).await || self.is_opened_by_node(place).await
    }

    /// Whether one of these is here, and isn't this registry's to be given: it never delivered it.
    async fn withholds(&self, registry: &Registry, blobs: &[Digest]) -> bool {
        let held = self.store.provenances(blobs.to_vec()).await;
        held.values().any(|provenance| !provenance.may_be_given_for(registry))
    }
}
