//! What of a peer's may be used here.
//!
//! A peer says of what it has which registry gave it, and to whom. What anybody could have is used for anybody; what came
//! to others under authorization only in a transfer that runs under authorization for that same registry, and only once
//! the registry has said that this caller may have it too. So a peer's bytes open nothing that the registry doesn't.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::source::PeerFault;
use super::transfer::Transfer;
use super::{Inner, Wanted};
use crate::image::{Access, Digest, Registry};
use crate::peers::{Follow, Head, Peers, Sought};

impl Inner {
    /// Whether a peer's bytes may be used in a transfer. Asks the registry where that has to say so.
    pub(super) async fn may_use(self: &Arc<Self>, transfer: &Transfer, head: &Head) -> Result<(), PeerFault> {
        let wanted = &transfer.wanted;
        let is_public = head.access == Access::Anonymous;
        if !is_for((&head.registry, head.access), (&wanted.place.registry, self.access_of(wanted))) {
            return Err(PeerFault::Closed);
        }
        let is_confirmed = !is_public && transfer.is_confirmed.load(Ordering::Relaxed);
        if is_confirmed || self.is_free(wanted, is_public).await {
            return Ok(());
        }
        self.confirm(wanted, is_public).await.map_err(PeerFault::Unconfirmed)?;
        if !is_public {
            transfer.is_confirmed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes over what the cluster knows of upstreams that broke a digest; whether any of it is news.
    pub(super) fn heed(&self, follow: &Follow, digest: &Digest) -> bool {
        let mut news = false;
        for source in follow.broken_sources() {
            if !self.blame.has_broken(&source, digest) {
                tracing::debug!(%digest, source, "broke this digest for another node");
                self.blame.broke(&source, *digest);
                news = true;
            }
        }
        news
    }

    /// This transfer's part in the cluster's download of its blob.
    pub(super) fn join_others(&self, transfer: &Transfer, size: Option<u64>, frontier: u64) -> Follow {
        match &self.peers {
            Some(peers) => peers.follow(self.sought(peers, &transfer.wanted), size, frontier, &transfer.trace),
            None => Follow::alone(),
        }
    }

    /// What is looked for among the peers.
    fn sought(&self, peers: &Peers, wanted: &Wanted) -> Sought {
        let credential = peers.credential(&wanted.grant);
        let registry = wanted.place.registry.clone();
        Sought { digest: wanted.digest, registry, access: self.access_of(wanted), credential }
    }
}

/// Whether what a registry gave a peer, as somebody, can be for a transfer of another, that runs as somebody.
fn is_for((theirs, given): (&Registry, Access), (ours, runs): (&Registry, Access)) -> bool {
    given == Access::Anonymous || (theirs == ours && runs == Access::Authorized)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_under_authorization_is_for_its_registry_and_for_who_has_shown_something() {
        let (ours, other): (Registry, Registry) = ("ours.test".parse().unwrap(), "other.test".parse().unwrap());
        let (open, closed) = (Access::Anonymous, Access::Authorized);
        for (theirs, given, runs, may) in [
            (&ours, open, open, true),
            (&ours, open, closed, true),
            (&other, open, open, true),
            (&other, open, closed, true),
            (&ours, closed, closed, true),
            (&ours, closed, open, false),
            (&other, closed, closed, false),
            (&other, closed, open, false),
        ] {
            assert_eq!(is_for((theirs, given), (&ours, runs)), may, "{theirs} {given:?} {runs:?}");
        }
    }
}
