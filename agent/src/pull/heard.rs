//! Who may have what, as other nodes know it: for when the registry can't be asked, and this node doesn't know itself.
//!
//! That credentials opened a repository is told to the members that keep it for all; that a blob is of that repository is
//! asked of whoever gives it. Both are needed: credentials that open one repository open nothing of another.

use crate::image::{Access, NodeId};
use crate::peers::{BlobOf, Right};
use crate::upstream::Grant;

use super::transfer::State;
use super::{Inner, Place, Pull, PullError, Wanted};

impl Pull {
    /// Whether a blob that is here is known as one of that repository, or is on its way for credentials that opened it. For
    /// who reads it from here.
    pub async fn knows(&self, of: &BlobOf) -> bool {
        let BlobOf { registry, repository, digest } = of;
        let suits = |wanted: &Wanted| {
            let Place { registry: from, repository: within } = &wanted.place;
            from == registry && within == repository && self.0.access_of(wanted) == Access::Authorized
        };
        let on_its_way = self.0.transfers.join(digest, |transfer| suits(&transfer.wanted));
        let has_begun = on_its_way.is_some_and(|following| {
            matches!(following.state(), State::Arriving(_) | State::Whole(_) | State::InMemory(..))
        });
        has_begun || self.0.is_known_as(registry, repository, digest).await
    }
}

impl Inner {
    /// A registry said whether a caller's credentials open a repository: the others are told, behind the reply.
    pub(super) fn tell_right(&self, place: &Place, grant: &Grant, right: Right) {
        let (Some(peers), Grant::Credentials(_)) = (self.peers.peers(), grant) else { return };
        let (place, grant, stop) = (place.clone(), grant.clone(), self.stop.clone());
        self.tasks.spawn(stop.run_until_cancelled_owned(async move {
            peers.tell_right(&grant, &place.registry, &place.repository, right).await;
        }));
    }

    /// Whether these credentials opened the repository through another node, and no registry has refused them since.
    pub(super) async fn opened_elsewhere(&self, place: &Place, grant: &Grant) -> bool {
        let (Some(peers), Grant::Credentials(_)) = (self.peers.peers(), grant) else { return false };
        let kept = peers.right(grant, &place.registry, &place.repository).await;
        kept.is_some_and(|kept| kept.right == Right::Opened && kept.age < self.options.remember)
    }

    /// Whether a peer knows what it gives as of the repository that it is wanted in.
    pub(super) async fn is_known_at(&self, node: NodeId, wanted: &Wanted) -> bool {
        let Some(peers) = self.peers.peers() else { return false };
        let Place { registry, repository } = wanted.place.clone();
        peers.knows(node, &BlobOf { registry, repository, digest: wanted.digest }).await
    }

    /// No upstream answered. Who has shown nothing is challenged, where others may have it for who shows more: containerd
    /// shows credentials to nobody who doesn't ask for them.
    pub(super) fn or_challenge(&self, place: &Place, grant: &Grant, error: PullError) -> PullError {
        let may_be_elsewhere = *grant == Grant::None && self.peers.is_joined() && !self.options.remember.is_zero();
        let said = error.said();
        if !may_be_elsewhere || self.word(place, said).is_some() || !self.is_unanswered(place, said) {
            return error;
        }
        match error {
            PullError::NotFound(said) | PullError::Denied(said) | PullError::NoAnswer(said) | PullError::Late(said) => {
                PullError::Unauthenticated(said)
            }
            other => other,
        }
    }
}
