//! Tags through the cluster: one node asks upstream for all that ask at the time, and in an outage the newest answer that
//! any of them was given holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::resolve::Resolved;
use super::{Inner, Kind, Pace, Place, Pull, Wanted};
use crate::image::{Access, Tag};
use crate::peers::{Peers, TagMeaning, TagSought, TagTurn};
use crate::store::TagRecord;
use crate::upstream::Grant;

/// How long the manifest that the newest answer names may take to come from a peer, while no upstream answers.
const COMES_WITHIN: Duration = Duration::from_secs(3);

impl Pull {
    /// What `tag` last meant to any node of the cluster, where its manifest is here or comes from a peer: for one who is in no
    /// hurry, while upstreams are to be left alone. Takes a few seconds at most.
    pub async fn resolve_among_peers(
        &self,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
        pace: &Arc<Pace>,
    ) -> Option<Resolved> {
        self.0.learn_newest(place, grant, tag, Some(pace)).await;
        self.0.known_and_given(place, grant, tag).await
    }
}

impl Inner {
    /// Whose turn it is to ask upstream what a tag means.
    pub(super) async fn tag_turn(&self, place: &Place, grant: &Grant, tag: &Tag) -> TagTurn {
        let Some(peers) = self.peers.peers() else { return TagTurn::Alone };
        peers.tag(&self.tag_sought(&peers, place, grant, tag), &self.journal.trace(place)).await
    }

    /// Takes over what another node was told, if this caller may have it.
    pub(super) fn told_by_another(
        &self,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
        answer: TagMeaning,
    ) -> Option<Resolved> {
        if !self.may_share(place, grant, &answer) {
            return None;
        }
        self.metrics.tag_answered("peer");
        let (store, place, tag, record) = (self.store.clone(), place.clone(), tag.clone(), record(&answer));
        // Behind the answer: a disk that hangs must not delay it.
        self.tasks.spawn(async move { store.record_tag(&place.registry, &place.repository, &tag, record).await });
        let TagMeaning { digest, media_type, size, .. } = answer;
        Some(Resolved { digest, media_type, size, stale_for: None, deleted: false })
    }

    /// What others are told of an answer that just came.
    pub(super) fn answer_for_others(
        &self,
        place: &Place,
        grant: &Grant,
        answer: &Resolved,
        access: Access,
    ) -> TagMeaning {
        let (digest, media_type, size) = (answer.digest, answer.media_type.clone(), answer.size);
        // On the safe side, as what arrives is recorded.
        let access = if self.access_at(place, grant) == Access::Anonymous { access } else { Access::Authorized };
        TagMeaning { digest, media_type, size, age: Duration::ZERO, access }
    }

    /// Takes over the newest answer that the cluster knows, where its manifest is to be had by this caller: owners that were
    /// started again don't know any more who was told. For when no upstream answers.
    ///
    /// With a `pace` it is for the background, and upstreams near their limits aren't asked for the manifest.
    pub(super) async fn learn_newest(
        self: &Arc<Self>,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
        pace: Option<&Arc<Pace>>,
    ) {
        let Some(peers) = self.peers.peers() else { return };
        let sought = self.tag_sought(&peers, place, grant, tag);
        let told = peers.newest(&sought, &self.journal.trace(place)).await.map(|answer| record(&answer));
        let own = self.store.tag(&place.registry, &place.repository, tag).await;
        let is_newer = |told: &TagRecord| own.as_ref().is_none_or(|own| own.confirmed_at < told.confirmed_at);
        let answer = match (told.filter(is_newer), own) {
            (Some(told), _) => told,
            // It may be what this node was told as an owner, of a manifest that was never here.
            (None, Some(own)) if self.store.blob(&own.digest).await.is_none() => own,
            (None, _) => return,
        };
        let wanted = Wanted { place: place.clone(), grant: grant.clone(), digest: answer.digest, kind: Kind::Manifest };
        let pull = Pull(Arc::clone(self));
        let fetched = async {
            match pace {
                Some(pace) => pull.fetch_in_background(&wanted, pace).await,
                None => pull.fetch(&wanted, 0).await,
            }
        };
        // Here already, or at a peer; and this caller's.
        match timeout(COMES_WITHIN, fetched).await {
            Ok(Ok(_)) => self.store.record_tag(&place.registry, &place.repository, tag, answer).await,
            Ok(Err(error)) => {
                tracing::debug!(image = %place, %tag, digest = %answer.digest, %error, "the newest answer is no use");
            }
            Err(_) => {
                tracing::debug!(image = %place, %tag, digest = %answer.digest, "the newest answer comes too late");
            }
        }
    }

    fn tag_sought(&self, peers: &Peers, place: &Place, grant: &Grant, tag: &Tag) -> TagSought {
        let Place { registry, repository } = place.clone();
        let credential = peers.credential(grant);
        TagSought { registry, repository, tag: tag.clone(), credential, max_age: self.options.tag_max_age }
    }

    /// What anybody was told is for anybody. Other answers come only from those who ask as the same.
    fn may_share(&self, place: &Place, grant: &Grant, answer: &TagMeaning) -> bool {
        answer.access == Access::Anonymous || self.access_at(place, grant) == Access::Authorized
    }
}

fn record(answer: &TagMeaning) -> TagRecord {
    TagRecord::new(answer.digest, answer.media_type.clone(), answer.size, answer.age)
}
