//! What a tag means now.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;

use super::direct::Opened;
use super::error::Said;
use super::{Inner, Place, Pull, PullError};
use crate::image::{Access, Digest, MediaType, Reference, Tag};
use crate::store::TagRecord;
use crate::upstream::{ErrorKind, Grant, Upstream, UpstreamError};

/// The longest manifest that is read to learn its digest, in bytes: containerd takes no longer one.
const MAX_MANIFEST: u64 = 4 << 20;

/// One tag of one repository, and as whom it is asked for.
pub(super) type TagKey = (Place, Tag, Grant);

/// What a tag means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest or index.
    pub digest: Digest,
    /// Its type.
    pub media_type: MediaType,
    /// Its length in bytes.
    pub size: u64,
    /// How old the answer is, when no upstream answered and an older one is given.
    pub stale_for: Option<Duration>,
}

impl Pull {
    /// What `tag` means, as upstream says now; or as it last said, when none answers.
    ///
    /// # Errors
    /// When upstream says that there is no such tag, or nothing answers and nothing is known.
    pub async fn resolve(&self, place: &Place, grant: &Grant, tag: &Tag) -> Result<Resolved, PullError> {
        let pull = &self.0;
        pull.journal.resolved(place, tag.as_str());
        if !pull.options.tag_max_age.is_zero()
            && let Some((record, age)) = pull.known(place, tag).await
            && age < pull.options.tag_max_age
        {
            pull.metrics.tag_answered("fresh");
            return Ok(resolved(record, None));
        }
        let ask = || {
            let (pull, place, grant, tag) = (Arc::clone(pull), place.clone(), grant.clone(), tag.clone());
            async move { pull.ask(&place, &grant, &tag).await }
        };
        let key = (place.clone(), tag.clone(), grant.clone());
        match timeout(pull.options.reply_deadline, pull.tags.join(key, &pull.tasks, ask)).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(PullError::Stopping),
            // Upstreams that are slow, one after the other, amount to no answer.
            Err(_) => pull.last_known(place, tag).await.ok_or_else(|| PullError::Late(Said::default())),
        }
    }
}

impl Inner {
    async fn ask(&self, place: &Place, grant: &Grant, tag: &Tag) -> Result<Resolved, PullError> {
        let mut said = Vec::new();
        let mut silent = false;
        for upstream in self.upstreams.of(&place.registry).for_tags().in_order() {
            match self.ask_one(&upstream, place, grant, tag).await {
                Ok(answer) => {
                    self.metrics.tag_answered("upstream");
                    let record = TagRecord {
                        digest: answer.digest,
                        media_type: answer.media_type.clone(),
                        size: answer.size,
                        confirmed_at: now(),
                    };
                    let (store, place, tag) = (self.store.clone(), place.clone(), tag.clone());
                    // Behind the answer: a disk that hangs must not delay it.
                    self.tasks.spawn(async move {
                        store.record_tag(&place.registry, &place.repository, &tag, record).await;
                    });
                    return Ok(answer);
                }
                Err(e) => {
                    tracing::debug!(image = %place, %tag, upstream = upstream.name(), error = %e, "no answer about a tag");
                    silent |= !e.is_answer();
                    said.push(Arc::new(e));
                }
            }
        }
        // "Not there" from one upstream is no word on what another, which is silent, has.
        if silent && let Some(stale) = self.last_known(place, tag).await {
            return Ok(stale);
        }
        self.metrics.tag_answered("none");
        Err(PullError::from_all(said))
    }

    async fn ask_one(
        &self,
        upstream: &Arc<Upstream>,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
    ) -> Result<Resolved, UpstreamError> {
        let reference = Reference::Tag(tag.clone());
        match upstream.head_manifest(grant, &place.repository, &reference).await {
            Ok(head) => {
                if let (Some(digest), Some(size), Some(media_type)) = (head.digest, head.size, head.media_type) {
                    return Ok(Resolved { digest, media_type, size, stale_for: None });
                }
            }
            Err(e) if *e.kind() == ErrorKind::Server(StatusCode::METHOD_NOT_ALLOWED) => {}
            Err(e) => return Err(e),
        }
        // A registry that knows no HEAD, or whose HEAD doesn't say it all: the manifest itself does.
        let mut opened = Opened::from(upstream, upstream.manifest(grant, &place.repository, &reference).await?);
        let media_type = opened.media_type.clone();
        opened.read_ahead(MAX_MANIFEST).await?;
        if opened.size.is_none() || opened.read().len() as u64 > MAX_MANIFEST {
            return Err(upstream.wrong_answer("sends a manifest of more than 4 MiB"));
        }
        let content = opened.into_read();
        let (digest, size) = (Digest::of(&content), content.len() as u64);
        let kept = self
            .store
            .put(&digest, content, Some(media_type.clone()), &place.registry, &place.repository, Access::Anonymous)
            .await;
        if let Err(e) = kept {
            tracing::debug!(%digest, reason = %e, "not stored");
        }
        Ok(Resolved { digest, media_type, size, stale_for: None })
    }

    /// What upstream last said, where the manifest that it named can be had without upstream.
    async fn last_known(&self, place: &Place, tag: &Tag) -> Option<Resolved> {
        let (record, age) = self.known(place, tag).await?;
        self.held(place, &record.digest).await?;
        tracing::warn!(
            image = %place, %tag, digest = %record.digest, age_seconds = age.as_secs(),
            "no upstream answers: the tag is given as it last was"
        );
        self.metrics.tag_stale(age);
        Some(resolved(record, Some(age)))
    }

    async fn known(&self, place: &Place, tag: &Tag) -> Option<(TagRecord, Duration)> {
        let record = self.store.tag(&place.registry, &place.repository, tag).await?;
        let age = Duration::from_secs(now().saturating_sub(record.confirmed_at));
        Some((record, age))
    }
}

fn resolved(record: TagRecord, stale_for: Option<Duration>) -> Resolved {
    Resolved { digest: record.digest, media_type: record.media_type, size: record.size, stale_for }
}

/// Seconds since 1970.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
