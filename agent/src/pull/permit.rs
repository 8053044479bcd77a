//! Who may have what is here.
//!
//! What some registry gave to anybody is anybody's, unless the repository that it is asked for in has turned private.
//! What only ever came to credentials is given to those whom that same registry gives it, in that repository: it is
//! asked by a HEAD, as the caller, and the answer is believed for minutes. Where it can't be asked, a keyed hash decides
//! of the credentials that opened the repository before, through this node or another. For every other registry such
//! content is not here at all.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;

use super::error::Said;
use super::word::{Word, is_last_word, is_refusal};
use super::{Inner, Kind, Place, PullError, Wanted};
use crate::image::{Access, Digest, Reference, Registry, Repository};
use crate::peers::Right;
use crate::store::Blob;
use crate::upstream::{Chain, ErrorKind, Grant, Upstream, UpstreamError};

/// Looks at whether repositories still open to anybody, under way at a time.
const LOOKS_AT_ONCE: usize = 16;

/// By whose word a caller may have something.
#[derive(Debug, Clone)]
pub(super) enum Leave {
    /// The registry's, just now.
    Registry,
    /// Nobody's but memory's, as the registry can't be asked: these credentials opened the repository before, and have what
    /// is known to be of it. For anything else this is the answer.
    Memory(PullError),
}

impl Inner {
    /// What the store holds, if this caller may have it. `None` says that it has to come from its registry.
    ///
    /// # Errors
    /// When it is here, and the registry says that it isn't this caller's; or says nothing, and nothing else speaks for
    /// this caller.
    pub(super) async fn held(self: &Arc<Self>, wanted: &Wanted) -> Result<Option<Blob>, PullError> {
        let Some(blob) = self.store.blob(&wanted.digest).await else { return Ok(None) };
        let provenance = blob.provenance();
        // What only ever arrived under authorization is a miss here: another registry's own answer decides.
        if !provenance.may_be_given_for(&wanted.place.registry) {
            return Ok(None);
        }
        let is_public = provenance.is_public();
        if self.is_free(wanted, is_public).await {
            if is_public && wanted.kind == Kind::Manifest {
                self.look_again(wanted);
            }
        } else {
            self.confirm(wanted, is_public).await?;
        }
        Ok(Some(blob))
    }

    /// Whether nobody needs to be asked.
    pub(super) async fn is_free(&self, wanted: &Wanted, is_public: bool) -> bool {
        let Wanted { place, grant, .. } = wanted;
        if is_public && self.openness(place).await != Some(Access::Authorized) {
            return true;
        }
        !self.options.remember.is_zero()
            && self.rights.has_opened(place, grant)
            && (is_public || self.is_known_in(wanted).await)
    }

    /// Asks the registry whether this caller may have it.
    ///
    /// # Errors
    /// When it says no; or says nothing, and these credentials didn't open it before.
    pub(super) async fn confirm(self: &Arc<Self>, wanted: &Wanted, is_public: bool) -> Result<(), PullError> {
        match self.ask_registry(wanted).await? {
            Leave::Registry => Ok(()),
            Leave::Memory(_) if is_public || self.is_known_in(wanted).await => {
                self.let_in(wanted);
                Ok(())
            }
            Leave::Memory(otherwise) => Err(otherwise),
        }
    }

    /// The same, of what isn't here, so that it isn't known here whether it is of that repository.
    ///
    /// # Errors
    /// As for [`Self::confirm`].
    pub(super) async fn ask_registry(self: &Arc<Self>, wanted: &Wanted) -> Result<Leave, PullError> {
        let Wanted { place, grant, digest, .. } = wanted;
        self.may_ask(place, grant).await?;
        let chain = self.upstreams.of(&place.registry);
        let asked = self.across(&chain, place, grant, |upstream| async move {
            let access = head(&upstream, wanted).await?;
            Ok((access, access))
        });
        let said = match tokio::time::timeout(self.options.reply_deadline / 2, asked).await {
            Ok(Ok((upstream, access))) => {
                if wanted.kind == Kind::Manifest {
                    self.has_given(&upstream, place, Reference::Digest(*digest), *digest);
                }
                self.store.confirmed(digest, &place.registry, &place.repository, access).await;
                return Ok(Leave::Registry);
            }
            Ok(Err(said)) => said,
            Err(_) => Vec::new(),
        };
        let is_open = self.is_unanswered(place, &said);
        let otherwise = PullError::from_all(said).for_grant(grant);
        if is_open {
            if *grant == Grant::None {
                // It is here, and what the caller may yet show can speak for it.
                return Err(PullError::Unauthenticated(Said::default()));
            }
            if self.opened_before(place, grant).await || self.opened_elsewhere(place, grant).await {
                return Ok(Leave::Memory(otherwise));
            }
        }
        Err(otherwise)
    }

    /// Memory spoke for this caller.
    pub(super) fn let_in(&self, wanted: &Wanted) {
        self.metrics.outage_permits.inc();
        self.rights.let_in(&wanted.place, &wanted.grant);
    }

    /// Who shows nothing is challenged before anybody is asked, where that is how it would end.
    ///
    /// # Errors
    /// [`PullError::Unauthenticated`].
    pub(super) async fn may_ask(&self, place: &Place, grant: &Grant) -> Result<(), PullError> {
        let is_closed = *grant == Grant::None && (self.is_challenged(place) || self.is_protected(place).await);
        if is_closed { Err(PullError::Unauthenticated(Said::default())) } else { Ok(()) }
    }

    /// Whether who shows nothing would be challenged: by an upstream that did so before, unless that one is down by now and
    /// others are asked in its place.
    fn is_challenged(&self, place: &Place) -> bool {
        let Some(challenger) = self.rights.challenger(place) else { return false };
        let chain = self.upstreams.of(&place.registry);
        let mut well = chain.iter().filter(|upstream| upstream.is_available()).peekable();
        well.peek().is_none() || well.any(|upstream| *upstream.name() == *challenger)
    }

    /// Whether this caller could have it before, as far as that is known here: for when nobody can be asked.
    pub(super) async fn could_have(&self, wanted: &Wanted, is_public: bool) -> bool {
        self.is_free(wanted, is_public).await
            || (self.opened_before(&wanted.place, &wanted.grant).await && (is_public || self.is_known_in(wanted).await))
    }

    /// Whether these credentials opened the repository through this node.
    async fn opened_before(&self, place: &Place, grant: &Grant) -> bool {
        self.is_remembered(self.hash(place, grant)).await || self.is_opened_by_node(place).await
    }

    /// Whether the registry delivered it, or confirmed it, in this repository.
    pub(super) async fn is_known_in(&self, wanted: &Wanted) -> bool {
        self.is_known_as(&wanted.place.registry, &wanted.place.repository, &wanted.digest).await
    }

    /// The same, of what somebody else wants.
    pub(super) async fn is_known_as(&self, registry: &Registry, repository: &Repository, digest: &Digest) -> bool {
        let known = self.store.repositories(digest).await;
        known.iter().any(|(of, within)| of == registry && within == repository)
    }

    /// Asks upstreams until one gives it; what each says is learnt from. The origin's word that there is no such thing
    /// ends the asking, a mirror's doesn't; and so does a challenge, which the caller may still meet.
    pub(super) async fn across<T, Ask, Asked>(
        &self,
        chain: &Chain,
        place: &Place,
        grant: &Grant,
        ask: Ask,
    ) -> Result<(Arc<Upstream>, T), Vec<Arc<UpstreamError>>>
    where
        Ask: Fn(Arc<Upstream>) -> Asked + Send,
        Asked: Future<Output = Result<(T, Access), UpstreamError>> + Send,
    {
        match chain.first(is_last_word, ask).await {
            Ok((upstream, (given, access))) => {
                self.given(place, grant, access);
                Ok((upstream, given))
            }
            Err(said) => {
                for error in &said {
                    tracing::debug!(image = %place, %error, "an upstream gives nothing");
                }
                self.refused(place, grant, &said);
                Err(said)
            }
        }
    }

    /// An upstream gave something of a repository.
    pub(super) fn given(&self, place: &Place, grant: &Grant, access: Access) {
        match access {
            Access::Anonymous => {
                if *grant == Grant::None {
                    self.rights.unchallenged(place);
                }
                self.learn_openness(place, access);
            }
            Access::Authorized => {
                if self.rights.opened(place, grant) && !self.options.remember.is_zero() {
                    self.tell_right(place, grant, Right::Opened);
                    let (store, hashes) = (self.store.clone(), [self.hash(place, grant), self.somebody(place)]);
                    self.tasks.spawn(async move {
                        for hash in hashes {
                            store.remember(hash, now()).await;
                        }
                    });
                }
            }
        }
    }

    /// No upstream gave it.
    pub(super) fn refused(&self, place: &Place, grant: &Grant, said: &[Arc<UpstreamError>]) {
        match grant {
            Grant::None => {
                if let Some(challenger) = said.iter().find(|e| e.is_challenge()) {
                    self.rights.challenged(place, challenger.upstream());
                }
            }
            // One that is silent may be the one that opens to anybody.
            Grant::Anonymous if said.iter().any(|e| is_refusal(e)) && said.iter().all(|e| e.is_answer()) => {
                self.learn_openness(place, Access::Authorized);
            }
            Grant::Anonymous | Grant::Credentials(_) | Grant::Own(_) => {}
        }
        let is_known = self.origin(place).is_some_and(|origin| origin.is_shown_credentials(grant));
        if is_known && self.word(place, said) == Some(Word::Refused) {
            self.rights.closed(place, grant);
            self.tell_right(place, grant, Right::Refused);
            let node = self.opened_as_node(place, grant);
            let (store, hash, somebody) = (self.store.clone(), self.hash(place, grant), self.somebody(place));
            self.tasks.spawn(async move {
                // What never opened it takes nothing from those who did. Who else did will say so again.
                let had_opened = store.remembered(hash).await.map(|_| somebody);
                for hash in [hash].into_iter().chain(had_opened).chain(node) {
                    store.forget(hash).await;
                }
            });
        }
    }

    fn learn_openness(&self, place: &Place, access: Access) {
        let before = self.rights.openness(place).flatten();
        if !self.rights.learn_openness(place, access) {
            return;
        }
        if before.is_some_and(|before| before != access) {
            tracing::info!(image = %place, private = access == Access::Authorized, "a repository turned private or public");
        }
        let (store, place) = (self.store.clone(), place.clone());
        self.tasks.spawn(async move {
            store.note_openness(&place.registry, &place.repository, access, now()).await;
        });
    }

    pub(super) async fn openness(&self, place: &Place) -> Option<Access> {
        if let Some(known) = self.rights.openness(place) {
            return known;
        }
        let stored = self.store.openness(&place.registry, &place.repository).await;
        self.rights.load_openness(place, stored.map(|(access, _)| access))
    }

    /// Whether an anonymous token is known not to open it.
    pub(super) async fn is_protected(&self, place: &Place) -> bool {
        self.openness(place).await == Some(Access::Authorized)
    }

    /// Asks a registry, as anybody, for a blob, and learns from what it says. Nobody waits for it, so upstreams near their
    /// limits are left alone. `None`: there was no answer.
    pub(super) async fn opens_to_anybody(&self, place: &Place, digest: &Digest, kind: Kind) -> Option<bool> {
        let wanted = Wanted { place: place.clone(), grant: Grant::Anonymous, digest: *digest, kind };
        let chain = self.upstreams.of(&place.registry);
        let willing = chain.clone().for_background();
        let is_all = willing.len() == chain.len();
        let asked = async {
            if is_all {
                return self.look_for(&wanted).await;
            }
            let ask = |upstream: Arc<Upstream>| {
                let wanted = &wanted;
                async move { head(&upstream, wanted).await }
            };
            let (_, access) = willing.first(is_last_word, ask).await?;
            self.given(place, &wanted.grant, access);
            Ok(access)
        };
        match tokio::time::timeout(self.options.reply_deadline, asked).await.ok()? {
            Ok(access) => Some(access == Access::Anonymous),
            // One that was left alone may be the one that opens.
            Err(_) if !is_all => None,
            Err(said) => said.iter().any(|error| error.is_answer()).then_some(false),
        }
    }

    /// Finds out, behind the reply, whether a repository whose content was just given away still opens to anybody.
    fn look_again(self: &Arc<Self>, wanted: &Wanted) {
        let Ok(place) = Arc::clone(&self.looks).try_acquire_owned() else { return };
        if !self.rights.look_is_due(&wanted.place) {
            return;
        }
        let (pull, wanted) = (Arc::clone(self), Wanted { grant: Grant::Anonymous, ..wanted.clone() });
        let stop = self.stop.clone();
        self.tasks.spawn(stop.run_until_cancelled_owned(async move {
            // What is said is learnt from; nobody waits for it.
            let _ = pull.look_for(&wanted).await;
            drop(place);
        }));
    }

    /// Asks the upstreams whether they have it, as whom its grant says, and learns from what they say.
    pub(super) async fn look_for(&self, wanted: &Wanted) -> Result<Access, Vec<Arc<UpstreamError>>> {
        let ask = |upstream: Arc<Upstream>| async move {
            let access = head(&upstream, wanted).await?;
            Ok((access, access))
        };
        let chain = self.upstreams.of(&wanted.place.registry);
        self.across(&chain, &wanted.place, &wanted.grant, ask).await.map(|(_, access)| access)
    }

    /// Whether what has this hash held, and lately enough.
    pub(super) async fn is_remembered(&self, hash: [u8; 32]) -> bool {
        if self.options.remember.is_zero() {
            return false;
        }
        let at = self.store.remembered(hash).await;
        at.is_some_and(|at| Duration::from_secs(now().saturating_sub(at)) < self.options.remember)
    }

    /// Of who opened a repository: a caller, or the agent without one, by its credentials; or an upstream that knows the
    /// agent, for all that bring none.
    fn hash(&self, place: &Place, grant: &Grant) -> [u8; 32] {
        let (registry, repository) = (place.registry.as_str().as_bytes(), place.repository.as_str().as_bytes());
        let hash =
            |[kind, name, secret]: [&[u8]; 3]| self.store.keyed_hash(&[kind, name, secret, registry, repository]);
        grant.hashed_by(hash).unwrap_or_else(|| hash([b"own", b"", b""]))
    }

    /// That somebody, whoever it was, opened a repository: it says to nobody who, and lets nobody in.
    pub(super) fn somebody(&self, place: &Place) -> [u8; 32] {
        let (registry, repository) = (place.registry.as_str().as_bytes(), place.repository.as_str().as_bytes());
        self.store.keyed_hash(&[b"somebody", registry, repository])
    }

    /// How what arrives is recorded: on the safe side, as authorized wherever credentials may have helped.
    pub(super) fn access_of(&self, wanted: &Wanted) -> Access {
        self.access_at(&wanted.place, &wanted.grant)
    }

    /// The same, for whatever a place gives.
    pub(super) fn access_at(&self, place: &Place, grant: &Grant) -> Access {
        let knows_us = || self.upstreams.of(&place.registry).iter().any(|upstream| upstream.knows_us());
        match grant.access() {
            Access::Anonymous if knows_us() => Access::Authorized,
            access => access,
        }
    }
}

/// How many looks may be under way.
pub(super) fn looks() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(LOOKS_AT_ONCE))
}

/// Whether an upstream has it for this caller, and whether for anybody.
async fn head(upstream: &Upstream, wanted: &Wanted) -> Result<Access, UpstreamError> {
    let Wanted { place, grant, digest, kind } = wanted;
    let reference = Reference::Digest(*digest);
    let answer = match kind {
        Kind::Manifest => upstream.head_manifest(grant, &place.repository, &reference).await,
        Kind::Blob => upstream.head_blob(grant, &place.repository, digest).await,
    };
    match answer {
        // A registry that knows no HEAD; of the manifest itself, nothing is read.
        Err(e) if *e.kind() == ErrorKind::Server(StatusCode::METHOD_NOT_ALLOWED) && *kind == Kind::Manifest => {
            Ok(upstream.manifest(grant, &place.repository, &reference).await?.access)
        }
        answer => Ok(answer?.access),
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
