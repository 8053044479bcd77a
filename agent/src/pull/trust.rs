//! What of a peer's may be used here.
//!
//! A peer says of what it has which registry gave it, and to whom. What anybody could have is used for anybody; what came
//! to others under authorization only in a transfer that runs under authorization for that same registry, and only once
//! the registry has said that this caller may have it too. Where it can't be asked, memory speaks for the caller, and the
//! peer says whether what it has is of the repository. So a peer's bytes open nothing that the registry doesn't.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::blame::Sender;
use super::permit::Leave;
use super::source::{AtPeer, PeerFault};
use super::transfer::Transfer;
use super::{Inner, PullError, Wanted};
use crate::image::{Access, Digest, Registry};
use crate::peers::{Follow, Head, Peer, Peers, Sought};
use crate::upstream::Part;

/// What the registry says, once for a transfer, of whether its caller may have what peers have under authorization.
#[derive(Debug, Default)]
pub(super) struct Asked {
    is_asked: AtomicBool,
    /// By memory's word.
    is_let_in: AtomicBool,
    said: watch::Sender<Option<Result<Leave, PullError>>>,
}

impl Inner {
    /// Opens a blob at a peer, if what it has may be used for whom the transfer is. A peer that waits for its own source
    /// lets wait: who does so keeps an eye on the turn.
    pub(super) async fn open_at(
        self: &Arc<Self>,
        peer: &Peer,
        transfer: &Arc<Transfer>,
        part: Part,
    ) -> Result<AtPeer, PeerFault> {
        if self.access_of(&transfer.wanted) == Access::Authorized && !self.is_free(&transfer.wanted, false).await {
            self.ask_leave(transfer);
        }
        let stream = peer.open(part.from, part.to).await?;
        self.may_use(transfer, peer, stream.head()).await?;
        Ok(AtPeer { node: peer.node(), stream: Box::new(stream), to: part.to })
    }

    /// Whether a peer's bytes may be used in a transfer. Asks the registry where that has to say so.
    async fn may_use(self: &Arc<Self>, transfer: &Arc<Transfer>, peer: &Peer, head: &Head) -> Result<(), PeerFault> {
        let wanted = &transfer.wanted;
        let is_public = head.access == Access::Anonymous;
        if !is_for((&head.registry, head.access), (&wanted.place.registry, self.access_of(wanted))) {
            return Err(PeerFault::Closed);
        }
        if self.is_free(wanted, is_public).await {
            return Ok(());
        }
        if is_public {
            // Its repository has turned private.
            return self.confirm(wanted, true).await.map_err(PeerFault::Unconfirmed);
        }
        self.ask_leave(transfer);
        let mut said = transfer.asked.said.subscribe();
        // The sender lives as long as the transfer does.
        let said = said.wait_for(Option::is_some).await.ok().and_then(|said| said.clone());
        match said.unwrap_or(Err(PullError::Stopping)).map_err(PeerFault::Unconfirmed)? {
            Leave::Registry => Ok(()),
            Leave::Memory(_) if self.is_known_in(wanted).await || self.is_known_at(peer.node(), wanted).await => {
                if !transfer.asked.is_let_in.swap(true, Ordering::Relaxed) {
                    self.let_in(wanted);
                }
                Ok(())
            }
            // Another may know it as of this repository.
            Leave::Memory(_) => Err(PeerFault::Closed),
        }
    }

    /// Asks the registry, once, behind the transfer's back: no peer waits for that with its stream open for long, and who
    /// turns to another has not asked in vain.
    fn ask_leave(self: &Arc<Self>, transfer: &Arc<Transfer>) {
        if transfer.asked.is_asked.swap(true, Ordering::Relaxed) {
            return;
        }
        let (pull, transfer, stop) = (Arc::clone(self), Arc::clone(transfer), self.stop.clone());
        self.tasks.spawn(stop.run_until_cancelled_owned(async move {
            let said = pull.ask_registry(&transfer.wanted).await;
            transfer.asked.said.send_replace(Some(said));
        }));
    }

    /// Takes over what the cluster knows of upstreams that broke a digest; whether any of it is news.
    pub(super) fn heed(&self, follow: &Follow, digest: &Digest) -> bool {
        let mut news = false;
        for source in follow.broken_sources() {
            if !self.blame.has_broken_at(&source, digest) {
                tracing::debug!(%digest, source, "broke this digest for another node");
                self.blame.broke(&Sender::at(&source), *digest);
                news = true;
            }
        }
        news
    }

    /// Asks the others, behind a transfer's back, of which of its upstreams they know that it sent wrong bytes, of whatever
    /// blob. A pull's manifest asks first: what is said of its layers' sources is known when these come.
    pub(super) fn ask_about_upstreams(self: &Arc<Self>, registry: &Registry) {
        let Some(peers) = self.peers.peers() else { return };
        for upstream in self.upstreams.of(registry).in_order() {
            if !self.blame.is_to_be_asked_about(upstream.name()) {
                continue;
            }
            let (pull, peers, stop) = (Arc::clone(self), peers.clone(), self.stop.clone());
            self.tasks.spawn(stop.run_until_cancelled_owned(async move {
                let is_suspect = peers.is_suspect(upstream.name()).await;
                pull.blame.is_said(upstream.name(), is_suspect);
            }));
        }
    }

    /// An upstream sent wrong bytes here: the others are told, behind the back of whoever found out.
    pub(super) fn warn_others(&self, upstream: &str) {
        let Some(peers) = self.peers.peers() else { return };
        let (upstream, stop) = (upstream.to_owned(), self.stop.clone());
        self.tasks.spawn(stop.run_until_cancelled_owned(async move { peers.tell_suspect(&upstream).await }));
    }

    /// This transfer's part in the cluster's download of its blob.
    pub(super) fn join_others(&self, transfer: &Transfer, size: Option<u64>, frontier: u64) -> Follow {
        match self.peers.peers() {
            Some(peers) => peers.follow(self.sought(&peers, &transfer.wanted), size, frontier, &transfer.trace),
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
