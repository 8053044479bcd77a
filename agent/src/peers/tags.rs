use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::DropGuard;

use super::{Inner, Trace};
use crate::cluster::chain::{Credential, Lease};
use crate::cluster::directory::{TagAnswer, TagAsk, TagKey, TagMeaning};
use crate::image::{Access, NodeId, Registry, Repository, Tag};
use crate::store::TagRecord;

/// How long the cluster may take to say what it last heard.
const NEWEST: Duration = Duration::from_secs(1);
/// A member that isn't the owner in its own view names another, and that one another, until views agree.
const HOPS: u32 = 3;
/// An owner holds a question for as long as it may, while another asks upstream; it isn't asked again more often.
const QUESTIONS: usize = 16;
/// How often who asks upstream says that it still does.
const ASKING_EVERY: Duration = Duration::from_millis(500);
/// How long an owner looks at its disk for what it knew before. Upstream may be asked instead.
const LOOKS_FOR: Duration = Duration::from_millis(500);

/// A tag whose meaning is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagSought {
    /// Of which registry.
    pub registry: Registry,
    /// Of which repository there.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
    /// As whom: answers are shared by those who ask as the same.
    pub credential: Credential,
    /// An answer younger than this will do; zero: one that is asked for now.
    pub max_age: Duration,
    /// How long the cluster may take to say whose turn it is, while another asks.
    pub patience: Duration,
}

/// Whose turn it is to ask upstream what a tag means.
#[derive(Debug)]
pub enum TagTurn {
    /// This node's, for others too: they are told by [`TagLease::told`].
    Ask(TagLease),
    /// Nobody's: this is what another was told.
    Answer(TagMeaning),
    /// The same, as whomever it was told: only who may have its manifest may have it.
    Known(TagMeaning),
    /// The cluster is no help: this node asks for itself.
    Alone,
}

/// The turn to ask upstream what a tag means. Dropped, it passes on to the next who waits.
#[derive(Debug)]
pub struct TagLease(Option<Of>);

#[derive(Debug)]
enum Of {
    Owner {
        inner: Arc<Inner>,
        owner: NodeId,
        lease: Lease,
        key: TagKey,
        /// Ends what tells the owner that upstream is still being asked.
        _asking: DropGuard,
    },
    #[cfg(test)]
    Script(super::script::Lease),
}

impl TagLease {
    #[cfg(test)]
    pub(super) const fn scripted(script: super::script::Lease) -> Self {
        Self(Some(Of::Script(script)))
    }

    /// What upstream said. Tells the others behind the caller's back; never waits.
    pub fn told(mut self, meaning: TagMeaning) {
        match self.0.take() {
            Some(Of::Owner { inner, owner, lease, key, .. }) => tell(inner, owner, lease, key, Some(meaning)),
            #[cfg(test)]
            Some(Of::Script(script)) => script.told(meaning),
            None => {}
        }
    }
}

impl Drop for TagLease {
    fn drop(&mut self) {
        if let Some(Of::Owner { inner, owner, lease, key, .. }) = self.0.take() {
            tell(inner, owner, lease, key, None);
        }
    }
}

/// Tells the owner that gave the lease.
fn tell(inner: Arc<Inner>, owner: NodeId, lease: Lease, key: TagKey, meaning: Option<TagMeaning>) {
    let (tasks, runtime) = (inner.tasks.clone(), inner.runtime.clone());
    let work = async move {
        // The call has its deadline.
        if let Err(error) = inner.report_tag(owner, &key, lease, meaning).await {
            tracing::debug!(%owner, %error, "an owner isn't told what a tag means");
        }
    };
    tasks.spawn_on(work, &runtime);
}

impl Inner {
    pub(super) async fn tag_turn(self: &Arc<Self>, sought: &TagSought, pull: &Trace) -> TagTurn {
        let turn = timeout(sought.patience, self.find_tag_turn(sought, pull)).await.unwrap_or(TagTurn::Alone);
        self.metrics.tag_looked_up(match &turn {
            TagTurn::Ask(_) => "ask",
            TagTurn::Answer(_) | TagTurn::Known(_) => "answer",
            TagTurn::Alone => "alone",
        });
        turn
    }

    async fn find_tag_turn(self: &Arc<Self>, sought: &TagSought, pull: &Trace) -> TagTurn {
        let key = sought.key();
        let mut ask =
            TagAsk { key: key.clone(), max_age: sought.max_age, waited: Some(Duration::ZERO), owner_failed: false };
        let Some(mut owner) = self.ring().owners(key.bucket()).first else { return TagTurn::Alone };
        let (began, mut hops) = (Instant::now(), 0);
        // Who answered nothing, or isn't an owner in its own view.
        let mut useless = Vec::new();
        for _ in 0..QUESTIONS {
            let named = match self.ask_tag(owner, &ask, pull).await {
                Ok(TagAnswer::Lease(lease)) => return TagTurn::Ask(self.begin_to_ask(owner, lease, key)),
                Ok(TagAnswer::Meaning(meaning)) => return TagTurn::Answer(meaning),
                Ok(TagAnswer::Known(meaning)) => return TagTurn::Known(meaning),
                Ok(TagAnswer::StillAsked) => {
                    ask.waited = Some(began.elapsed());
                    continue;
                }
                Ok(TagAnswer::Alone) => return TagTurn::Alone,
                Ok(TagAnswer::NotOwner(named)) => named,
                Err(error) => {
                    tracing::debug!(%pull, %owner, %error, "an owner of a tag doesn't answer");
                    None
                }
            };
            useless.push(owner);
            let is_new = |other: &NodeId| !useless.contains(other);
            let owners = self.ring().owners(key.bucket());
            let next = named.filter(|named| hops + 1 < HOPS && is_new(named));
            hops += u32::from(next.is_some());
            let Some(next) = next.or_else(|| owners.iter().find(is_new)) else { return TagTurn::Alone };
            ask.owner_failed = owners.second == Some(next);
            // What others were told there meanwhile will do.
            ask.waited = Some(began.elapsed());
            owner = next;
        }
        TagTurn::Alone
    }

    /// From now on the owner hears that upstream is being asked, as long as the lease is held.
    fn begin_to_ask(self: &Arc<Self>, owner: NodeId, lease: Lease, key: TagKey) -> TagLease {
        let asks = self.stop.child_token();
        let (inner, asked) = (Arc::clone(self), key.clone());
        let say = async move {
            loop {
                sleep(ASKING_EVERY).await;
                if let Err(error) = inner.still_ask_tag(owner, &asked, lease).await {
                    tracing::debug!(%owner, %error, "an owner isn't told that upstream is still being asked");
                }
            }
        };
        self.tasks.spawn_on(asks.clone().run_until_cancelled_owned(say), &self.runtime);
        TagLease(Some(Of::Owner { inner: Arc::clone(self), owner, lease, key, _asking: asks.drop_guard() }))
    }

    pub(super) async fn newest_answer(&self, sought: &TagSought, pull: &Trace) -> Option<TagMeaning> {
        let key = sought.key();
        let ask = TagAsk { key, max_age: Duration::MAX, waited: None, owner_failed: true };
        let owners = self.ring().owners(ask.key.bucket());
        let ask = &ask;
        let asked = owners.iter().map(|owner| async move {
            let answer = timeout(NEWEST, self.newest_tag_of(owner, ask, pull)).await;
            answer.ok().and_then(Result::ok).flatten()
        });
        let answers = futures_util::future::join_all(asked).await;
        answers.into_iter().flatten().min_by_key(|meaning| meaning.age)
    }

    /// As an owner: what a tag means, or whose turn it is to ask. What was told before this process began counts too.
    pub(super) async fn tag_asked(&self, from: NodeId, ask: &TagAsk, pull: &Trace) -> TagAnswer {
        let is_young = |meaning: &TagMeaning| meaning.age < ask.max_age;
        if ask.waited.is_some()
            && !ask.max_age.is_zero()
            && !self.directory.newest_tag(&ask.key).is_some_and(|told| is_young(&told))
            && let Ok(Some(known)) = timeout(LOOKS_FOR, self.stored_tag(&ask.key)).await
            && is_young(&known)
        {
            return TagAnswer::Known(known);
        }
        self.directory.ask_tag(from, ask, pull).await
    }

    /// As an owner: what upstream said to `from`, under the lease that it was given here. It outlives this process. Without
    /// a lease it is what the tag's first owner tells the second, which believes it of that one alone.
    pub(super) async fn tag_reported(
        self: &Arc<Self>,
        from: NodeId,
        key: &TagKey,
        lease: Option<Lease>,
        meaning: Option<TagMeaning>,
    ) {
        let owners = self.ring().owners(key.bucket());
        let is_believed = match lease {
            Some(lease) => self.directory.report_tag(from, key, lease, meaning.clone()),
            None => owners.first == Some(from) && owners.second == Some(self.node),
        };
        let Some(meaning) = meaning.filter(|_| is_believed) else { return };
        if lease.is_some()
            && owners.first == Some(self.node)
            && let Some(second) = owners.second
        {
            let (inner, key, meaning) = (Arc::clone(self), key.clone(), meaning.clone());
            // It does without. The call has its deadline.
            let copy = async move { drop(inner.copy_tag(second, &key, &meaning).await) };
            self.tasks.spawn_on(copy, &self.runtime);
        }
        let TagKey { registry, repository, tag, .. } = key;
        let record = TagRecord::new(meaning.digest, meaning.media_type, meaning.size, meaning.age);
        let known = self.store.tag(registry, repository, tag).await;
        if known.is_none_or(|known| known.confirmed_at < record.confirmed_at) {
            self.store.record_tag(registry, repository, tag, record).await;
        }
    }

    /// As an owner: the newest that is known here. Whether who asks may have it is for who asks to find out.
    pub(super) async fn newest_tag(&self, key: &TagKey) -> Option<TagMeaning> {
        let (told, stored) = (self.directory.newest_tag(key), self.stored_tag(key).await);
        [told, stored].into_iter().flatten().min_by_key(|meaning| meaning.age)
    }

    async fn stored_tag(&self, key: &TagKey) -> Option<TagMeaning> {
        self.store.tag(&key.registry, &key.repository, &key.tag).await.map(|record| TagMeaning {
            // Rounded up: it is known to the second, and what was told within it is the later word.
            age: record.age() + Duration::from_secs(1),
            digest: record.digest,
            media_type: record.media_type,
            size: record.size,
            // It says nothing of who was told.
            access: Access::Authorized,
        })
    }
}

impl TagSought {
    fn key(&self) -> TagKey {
        let Self { registry, repository, tag, credential, .. } = self.clone();
        TagKey { registry, repository, tag, credential }
    }
}
