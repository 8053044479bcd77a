//! Tags through the cluster: one node asks upstream for all that ask at the time, and in an outage the newest answer that
//! any of them was given holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::resolve::Resolved;
use super::{Inner, Kind, Pace, Place, Pull, Wanted};
use crate::image::{Access, Digest, Tag};
use crate::peers::{Peers, TagMeaning, TagSought, TagTurn};
use crate::store::TagRecord;
use crate::upstream::Grant;

/// How long the manifest that another's answer names may take to come.
const COMES_WITHIN: Duration = Duration::from_secs(3);
/// So much of a reply's time may be waited for another who asks upstream: what is left is enough to ask it, and, when it is
/// silent, to find out what the cluster knows.
const PART_WAITED: u32 = 4;

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
        self.note_tag(place, tag, record(&answer));
        let TagMeaning { digest, media_type, size, .. } = answer;
        Some(Resolved { digest, media_type, size, stale_for: None, deleted: false })
    }

    /// Takes over a young answer of which nobody knows any more to whom it was given, if its manifest is to be had by this
    /// caller.
    pub(super) async fn known_to_another(
        self: &Arc<Self>,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
        answer: TagMeaning,
    ) -> Option<Resolved> {
        if !self.is_to_be_had(place, grant, &answer.digest, None).await {
            return None;
        }
        self.metrics.tag_answered("peer");
        self.note_tag(place, tag, record(&answer));
        let TagMeaning { digest, media_type, size, .. } = answer;
        Some(Resolved { digest, media_type, size, stale_for: None, deleted: false })
    }

    /// Behind the answer: a disk that hangs must not delay it.
    pub(super) fn note_tag(&self, place: &Place, tag: &Tag, record: TagRecord) {
        let (store, place, tag) = (self.store.clone(), place.clone(), tag.clone());
        self.tasks.spawn(async move { store.record_tag(&place.registry, &place.repository, &tag, record).await });
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
        if self.is_to_be_had(place, grant, &answer.digest, pace).await {
            self.store.record_tag(&place.registry, &place.repository, tag, answer).await;
        }
    }

    /// Whether a manifest that another's answer names is here already, or comes soon; and is this caller's.
    async fn is_to_be_had(
        self: &Arc<Self>,
        place: &Place,
        grant: &Grant,
        digest: &Digest,
        pace: Option<&Arc<Pace>>,
    ) -> bool {
        let wanted = Wanted { place: place.clone(), grant: grant.clone(), digest: *digest, kind: Kind::Manifest };
        let pull = Pull(Arc::clone(self));
        let fetched = async {
            match pace {
                Some(pace) => pull.fetch_in_background(&wanted, pace).await,
                None => pull.fetch(&wanted, 0).await,
            }
        };
        match timeout(COMES_WITHIN, fetched).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::debug!(image = %place, %digest, %error, "another's answer is no use");
                false
            }
            Err(_) => {
                tracing::debug!(image = %place, %digest, "another's answer comes too late");
                false
            }
        }
    }

    fn tag_sought(&self, peers: &Peers, place: &Place, grant: &Grant, tag: &Tag) -> TagSought {
        let Place { registry, repository } = place.clone();
        let (credential, max_age) = (peers.credential(grant), self.options.tag_max_age);
        let patience = self.options.reply_deadline / PART_WAITED;
        TagSought { registry, repository, tag: tag.clone(), credential, max_age, patience }
    }

    /// What anybody was told is for anybody. Other answers come only from those who ask as the same.
    fn may_share(&self, place: &Place, grant: &Grant, answer: &TagMeaning) -> bool {
        answer.access == Access::Anonymous || self.access_at(place, grant) == Access::Authorized
    }
}

fn record(answer: &TagMeaning) -> TagRecord {
    TagRecord::new(answer.digest, answer.media_type.clone(), answer.size, answer.age)
}
