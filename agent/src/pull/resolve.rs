//! What a tag means now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::{self, timeout_at};

use super::bounded::insert;
use super::direct::Opened;
use super::error::Said;
use super::word::Word;
use super::{Inner, Kind, Place, Pull, PullError, Wanted};
use crate::image::{Access, Digest, MediaType, Reference, Tag};
use crate::peers::TagTurn;
use crate::store::TagRecord;
use crate::upstream::{ErrorKind, Grant, Upstream, UpstreamError};

/// The longest manifest that is read to learn its digest, in bytes: containerd takes no longer one.
const MAX_MANIFEST: u64 = 4 << 20;
/// A tag of which a mirror has answered is compared with its registry no more often than this.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
/// Comparisons of which the time is remembered.
const COMPARED: usize = 4096;
/// Comparisons under way at a time.
const COMPARISONS_AT_ONCE: usize = 8;

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
    /// How old the answer is, when an older one is given: no upstream answered, or the tag is gone.
    pub stale_for: Option<Duration>,
    /// The registry has no such tag any more.
    pub deleted: bool,
}

/// When which tag was last compared, and how many are being.
pub(super) struct Comparing {
    last: Mutex<HashMap<(Place, Tag), Instant>>,
    places: Arc<Semaphore>,
}

impl Default for Comparing {
    fn default() -> Self {
        Self { last: Mutex::default(), places: Arc::new(Semaphore::new(COMPARISONS_AT_ONCE)) }
    }
}

/// What is known of a tag without asking upstream.
enum Known {
    /// To be given to this caller.
    This(TagRecord, Duration),
    /// Not to this caller, as far as it has shown who it is.
    Withheld(TagRecord, Duration),
    Nothing,
}

impl Pull {
    /// What `tag` means, as upstream says now; or as it last said, when none answers.
    ///
    /// # Errors
    /// When upstream says that there is no such tag, or nothing answers and nothing is known.
    pub async fn resolve(&self, place: &Place, grant: &Grant, tag: &Tag) -> Result<Resolved, PullError> {
        self.resolve_by(self.deadline(), place, grant, tag).await
    }

    /// The same, for a reply that has to begin by `deadline`.
    pub(super) async fn resolve_by(
        &self,
        deadline: time::Instant,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
    ) -> Result<Resolved, PullError> {
        // The rest of the time is for what was known before.
        let asked_until = deadline - self.0.options.reply_deadline / 10;
        let resolved = timeout_at(deadline, self.ask_until(asked_until, place, grant, tag)).await;
        resolved.unwrap_or_else(|_| Err(PullError::Late(Said::default())))
    }

    async fn ask_until(
        &self,
        asked_until: time::Instant,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
    ) -> Result<Resolved, PullError> {
        let pull = &self.0;
        pull.journal.resolved(place, tag.as_str());
        if !pull.options.tag_max_age.is_zero()
            && let Known::This(record, _) = pull.known(place, grant, tag).await
            && record.is_younger_than(pull.options.tag_max_age)
            && pull.is_given(place, grant, &record.digest).await
        {
            pull.metrics.tag_answered("fresh");
            return Ok(resolved(record, None));
        }
        pull.may_ask(place, grant).await?;
        let ask = || {
            let (pull, place, grant, tag) = (Arc::clone(pull), place.clone(), grant.clone(), tag.clone());
            async move { pull.ask(&place, &grant, &tag).await }
        };
        let key = (place.clone(), tag.clone(), grant.clone());
        match timeout_at(asked_until, pull.tags.join(key, &pull.tasks, ask)).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(PullError::Stopping),
            // Upstreams that are slow, one after the other, amount to no answer.
            Err(_) => match pull.last_known(place, grant, tag, false).await? {
                Some(stale) => Ok(stale),
                None => Err(pull.or_challenge(place, grant, PullError::Late(Said::default()))),
            },
        }
    }
}

impl Inner {
    /// Whether the manifest may be given to this caller as things are now.
    async fn is_given(self: &Arc<Self>, place: &Place, grant: &Grant, digest: &Digest) -> bool {
        let wanted = Wanted { place: place.clone(), grant: grant.clone(), digest: *digest, kind: Kind::Manifest };
        matches!(self.held(&wanted).await, Ok(Some(_)))
    }

    async fn ask(self: &Arc<Self>, place: &Place, grant: &Grant, tag: &Tag) -> Result<Resolved, PullError> {
        let lease = match self.tag_turn(place, grant, tag).await {
            TagTurn::Ask(lease) => Some(lease),
            TagTurn::Alone => None,
            TagTurn::Answer(answer) => match self.told_by_another(place, grant, tag, answer) {
                Some(answer) => return Ok(answer),
                None => None,
            },
            TagTurn::Known(answer) => match self.known_to_another(place, grant, tag, answer).await {
                Some(answer) => return Ok(answer),
                None => None,
            },
        };
        let chain = self.upstreams.of(&place.registry).for_tags();
        let ask = |upstream| async move {
            let (answer, access) = self.ask_one(&upstream, place, grant, tag).await?;
            Ok(((answer, access), access))
        };
        let said = match self.across(&chain, place, grant, ask).await {
            Ok((upstream, (answer, access))) => {
                self.metrics.tag_answered("upstream");
                self.has_given(&upstream, place, Reference::Tag(tag.clone()), answer.digest);
                if let Some(lease) = lease {
                    lease.told(self.answer_for_others(place, grant, &answer, access));
                }
                let record = TagRecord::new(answer.digest, answer.media_type.clone(), answer.size, Duration::ZERO);
                self.note_tag(place, tag, record);
                self.compare(&upstream, place, grant, tag, answer.digest);
                return Ok(answer);
            }
            Err(said) => {
                // Who waits for this answer may have other upstreams to ask.
                let _passed_on = lease;
                said
            }
        };
        let is_deleted = self.word(place, &said) == Some(Word::Gone);
        let is_open = !chain.is_empty() && self.is_unanswered(place, &said);
        if is_open && !is_deleted {
            self.learn_newest(place, grant, tag, None).await;
        }
        if is_open && let Some(stale) = self.last_known(place, grant, tag, is_deleted).await? {
            return Ok(stale);
        }
        self.metrics.tag_answered("none");
        Err(self.or_challenge(place, grant, PullError::from_all(said).for_grant(grant)))
    }

    /// Finds out, behind the reply, whether the registry itself says the same as a mirror of it.
    fn compare(self: &Arc<Self>, answered: &Arc<Upstream>, place: &Place, grant: &Grant, tag: &Tag, digest: Digest) {
        let Some(origin) =
            self.origin(place).filter(|origin| !Arc::ptr_eq(origin, answered) && origin.allows_background())
        else {
            return;
        };
        let Ok(turn) = Arc::clone(&self.comparing.places).try_acquire_owned() else { return };
        {
            let mut last = self.comparing.last.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (place.clone(), tag.clone());
            if last.get(&key).is_some_and(|at| at.elapsed() < COMPARE_EVERY) {
                return;
            }
            insert(&mut last, COMPARED, key, Instant::now(), |at| *at);
        }
        let (pull, mirror, place) = (Arc::clone(self), Arc::clone(answered), place.clone());
        let (grant, tag, stop) = (grant.clone(), tag.clone(), self.stop.clone());
        self.tasks.spawn(stop.run_until_cancelled_owned(async move {
            // Nobody waits for this: the agent's own credentials spend no caller's quota.
            let own = pull.upstreams.own_grant_at(std::slice::from_ref(&origin), &place.repository).await;
            let grant = own.unwrap_or(match grant {
                // One that challenges answers nobody who shows nothing.
                Grant::None => Grant::Anonymous,
                shown => shown,
            });
            let said = origin.head_manifest(&grant, &place.repository, &Reference::Tag(tag.clone())).await;
            if let Some(other) = said.ok().and_then(|answer| answer.digest).filter(|other| *other != digest) {
                pull.metrics.disagreements.inc();
                tracing::warn!(
                    image = %place, %tag, mirror = mirror.name(), %digest, registry = origin.name(), registry_digest = %other,
                    "a mirror and its registry disagree about a tag"
                );
            }
            drop(turn);
        }));
    }

    async fn ask_one(
        &self,
        upstream: &Arc<Upstream>,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
    ) -> Result<(Resolved, Access), UpstreamError> {
        let reference = Reference::Tag(tag.clone());
        let said = match upstream.head_manifest(grant, &place.repository, &reference).await {
            Ok(head) => {
                check_type(upstream, head.media_type.as_ref())?;
                if let (Some(digest), Some(size), Some(media_type)) = (head.digest, head.size, head.media_type) {
                    return Ok((Resolved { digest, media_type, size, stale_for: None, deleted: false }, head.access));
                }
                head.digest
            }
            Err(e) if *e.kind() == ErrorKind::Server(StatusCode::METHOD_NOT_ALLOWED) => None,
            Err(e) => return Err(e),
        };
        // A registry that knows no HEAD, or whose HEAD doesn't say it all: the manifest itself does.
        let answer = upstream.manifest(grant, &place.repository, &reference).await?;
        check_type(upstream, answer.media_type.as_ref())?;
        let said = answer.digest.or(said);
        let mut opened = Opened::from(upstream, answer);
        let (media_type, access) = (opened.media_type.clone(), opened.access);
        opened.read_ahead(MAX_MANIFEST).await?;
        if opened.size.is_none() || opened.read().len() as u64 > MAX_MANIFEST {
            return Err(upstream.wrong_answer("sends a manifest of more than 4 MiB"));
        }
        let content = opened.into_read();
        check_content(upstream, &content, said.as_ref())?;
        let (digest, size) = (Digest::of(&content), content.len() as u64);
        let kept = self
            .store
            .put(&digest, content, Some(media_type.clone()), &place.registry, &place.repository, access)
            .await;
        if let Err(e) = kept {
            tracing::debug!(%digest, reason = %e, "not stored");
        }
        Ok((Resolved { digest, media_type, size, stale_for: None, deleted: false }, access))
    }

    /// What upstream last said, where the manifest that it named can be had without upstream, by this caller.
    async fn last_known(
        self: &Arc<Self>,
        place: &Place,
        grant: &Grant,
        tag: &Tag,
        deleted: bool,
    ) -> Result<Option<Resolved>, PullError> {
        let (record, age) = match self.known(place, grant, tag).await {
            Known::This(record, age) => (record, age),
            // It may still show who it is.
            Known::Withheld(..) if *grant == Grant::None => return Err(PullError::Unauthenticated(Said::default())),
            Known::Withheld(record, age) if self.has_opened_elsewhere(place, grant, &record.digest).await => {
                (record, age)
            }
            Known::Withheld(..) | Known::Nothing => return Ok(None),
        };
        let why = if deleted { "the registry has it no more" } else { "no upstream answers" };
        tracing::warn!(
            image = %place, %tag, digest = %record.digest, age_seconds = age.as_secs(), why,
            "a tag is given as it last was"
        );
        if deleted {
            self.metrics.tag_answered("deleted");
        } else {
            self.metrics.tag_stale(age);
        }
        Ok(Some(Resolved { deleted, ..resolved(record, Some(age)) }))
    }

    /// What is known without asking upstream, if this caller may have it.
    pub(super) async fn known_and_given(self: &Arc<Self>, place: &Place, grant: &Grant, tag: &Tag) -> Option<Resolved> {
        match self.known(place, grant, tag).await {
            Known::This(record, age) => Some(resolved(record, Some(age))),
            Known::Withheld(..) | Known::Nothing => None,
        }
    }

    async fn known(&self, place: &Place, grant: &Grant, tag: &Tag) -> Known {
        let Some(record) = self.store.tag(&place.registry, &place.repository, tag).await else { return Known::Nothing };
        let age = record.age();
        let blob = self.store.blob(&record.digest).await.map(|blob| blob.provenance());
        let Some(provenance) = blob.filter(|provenance| provenance.may_be_given_for(&place.registry)) else {
            return Known::Nothing;
        };
        let wanted = Wanted { place: place.clone(), grant: grant.clone(), digest: record.digest, kind: Kind::Manifest };
        if self.could_have(&wanted, provenance.is_public()).await {
            Known::This(record, age)
        } else {
            Known::Withheld(record, age)
        }
    }

    /// Whether other nodes speak for this caller, and a manifest that is here is of this repository.
    async fn has_opened_elsewhere(&self, place: &Place, grant: &Grant, digest: &Digest) -> bool {
        self.is_known_as(&place.registry, &place.repository, digest).await && self.opened_elsewhere(place, grant).await
    }
}

fn check_type(upstream: &Upstream, media_type: Option<&MediaType>) -> Result<(), UpstreamError> {
    match media_type.filter(|media_type| !media_type.may_be_manifest()) {
        Some(wrong) => Err(upstream.wrong_answer(format!("says that the manifest is {wrong}"))),
        None => Ok(()),
    }
}

/// Nobody named a digest that this content has to have: what its own upstream says of it is all that it can be held
/// against, and that it is JSON, which a part of a manifest is not.
fn check_content(upstream: &Upstream, content: &[u8], said: Option<&Digest>) -> Result<(), UpstreamError> {
    if let Some(said) = said {
        let found = said.like(content);
        if found != *said {
            return Err(upstream.wrong_answer(format!("sends a manifest that is {found}, and says that it is {said}")));
        }
    }
    let json: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(content);
    json.map(drop).map_err(|e| upstream.wrong_answer(format!("sends a manifest that is no JSON: {e}")))
}

fn resolved(record: TagRecord, stale_for: Option<Duration>) -> Resolved {
    let TagRecord { digest, media_type, size, .. } = record;
    Resolved { digest, media_type, size, stale_for, deleted: false }
}
