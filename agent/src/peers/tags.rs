use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{Inner, Trace};
use crate::cluster::chain::{Credential, Lease};
use crate::cluster::directory::{TagAnswer, TagAsk, TagKey, TagMeaning};
use crate::image::{Access, NodeId, Registry, Repository, Tag};
use crate::store::TagRecord;

/// How long the cluster may take to say whose turn it is.
const BUDGET: Duration = Duration::from_secs(2);
/// How long it may take to say what it last heard.
const NEWEST: Duration = Duration::from_secs(1);
/// A member that isn't the owner in its own view names another, and that one another, until views agree.
const HOPS: usize = 3;

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
}

/// Whose turn it is to ask upstream what a tag means.
#[derive(Debug)]
pub enum TagTurn {
    /// This node's, for others too: they are told by [`TagLease::told`].
    Ask(TagLease),
    /// Nobody's: this is what another was told.
    Answer(TagMeaning),
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
            Some(Of::Owner { inner, owner, lease, key }) => tell(inner, owner, lease, key, Some(meaning)),
            #[cfg(test)]
            Some(Of::Script(script)) => script.told(meaning),
            None => {}
        }
    }
}

impl Drop for TagLease {
    fn drop(&mut self) {
        if let Some(Of::Owner { inner, owner, lease, key }) = self.0.take() {
            tell(inner, owner, lease, key, None);
        }
    }
}

/// Tells the owner that gave the lease; and of an answer the tag's other owner too, which knows it then when the first
/// one fails.
fn tell(inner: Arc<Inner>, owner: NodeId, lease: Lease, key: TagKey, meaning: Option<TagMeaning>) {
    let (tasks, runtime) = (inner.tasks.clone(), inner.runtime.clone());
    let work = async move {
        let told = inner.report_tag(owner, &key, Some(lease), meaning.clone()).await;
        if let Err(error) = told {
            tracing::debug!(%owner, %error, "an owner isn't told what a tag means");
        }
        if meaning.is_some()
            && let Some(other) = inner.ring().owners(key.bucket()).beside(owner)
        {
            // It does without.
            let _ = inner.report_tag(other, &key, None, meaning).await;
        }
    };
    // Each call has its deadline.
    tasks.spawn_on(work, &runtime);
}

impl Inner {
    pub(super) async fn tag_turn(self: &Arc<Self>, sought: &TagSought, pull: &Trace) -> TagTurn {
        let turn = timeout(BUDGET, self.find_tag_turn(sought, pull)).await.unwrap_or(TagTurn::Alone);
        self.metrics.tag_looked_up(match &turn {
            TagTurn::Ask(_) => "ask",
            TagTurn::Answer(_) => "answer",
            TagTurn::Alone => "alone",
        });
        turn
    }

    async fn find_tag_turn(self: &Arc<Self>, sought: &TagSought, pull: &Trace) -> TagTurn {
        let key = sought.key();
        let owners = self.ring().owners(key.bucket());
        let mut ask = TagAsk { key: key.clone(), max_age: sought.max_age, owner_failed: false };
        let Some(mut owner) = owners.first else { return TagTurn::Alone };
        for _ in 0..HOPS {
            owner = match self.ask_tag(owner, &ask, pull).await {
                Ok(TagAnswer::Lease(lease)) => {
                    return TagTurn::Ask(TagLease(Some(Of::Owner { inner: Arc::clone(self), owner, lease, key })));
                }
                Ok(TagAnswer::Meaning(meaning)) => return TagTurn::Answer(meaning),
                Ok(TagAnswer::NotOwner(Some(other))) if other != owner => other,
                Ok(TagAnswer::NotOwner(_) | TagAnswer::Alone) => return TagTurn::Alone,
                Err(error) => {
                    tracing::debug!(%pull, %owner, %error, "an owner of a tag doesn't answer");
                    ask.owner_failed = true;
                    match owners.beside(owner) {
                        Some(second) if Some(owner) == owners.first => second,
                        _ => return TagTurn::Alone,
                    }
                }
            };
        }
        TagTurn::Alone
    }

    pub(super) async fn newest_answer(&self, sought: &TagSought, pull: &Trace) -> Option<TagMeaning> {
        let key = sought.key();
        let ask = TagAsk { key, max_age: Duration::MAX, owner_failed: true };
        let owners = self.ring().owners(ask.key.bucket());
        let ask = &ask;
        let asked = owners.iter().map(|owner| async move {
            let answer = timeout(NEWEST, self.newest_tag_of(owner, ask, pull)).await;
            answer.ok().and_then(Result::ok).flatten()
        });
        let answers = futures_util::future::join_all(asked).await;
        answers.into_iter().flatten().min_by_key(|meaning| meaning.age)
    }

    /// As an owner: what upstream said to another. It outlives this process.
    pub(super) async fn tag_reported(&self, key: &TagKey, lease: Option<Lease>, meaning: Option<TagMeaning>) {
        self.directory.report_tag(key, lease, meaning.clone());
        let Some(meaning) = meaning else { return };
        let TagKey { registry, repository, tag, .. } = key;
        let record = TagRecord::new(meaning.digest, meaning.media_type, meaning.size, meaning.age);
        let known = self.store.tag(registry, repository, tag).await;
        if known.is_none_or(|known| known.confirmed_at < record.confirmed_at) {
            self.store.record_tag(registry, repository, tag, record).await;
        }
    }

    /// As an owner: the newest that is known here. Whether who asks may have it is for who asks to find out.
    pub(super) async fn newest_tag(&self, key: &TagKey) -> Option<TagMeaning> {
        let told = self.directory.newest_tag(key);
        let stored = self.store.tag(&key.registry, &key.repository, &key.tag).await.map(|record| TagMeaning {
            // Rounded up: it is known to the second, and what was told within it is the later word.
            age: record.age() + Duration::from_secs(1),
            digest: record.digest,
            media_type: record.media_type,
            size: record.size,
            // It says nothing of who was told.
            access: Access::Authorized,
        });
        [told, stored].into_iter().flatten().min_by_key(|meaning| meaning.age)
    }
}

impl TagSought {
    fn key(&self) -> TagKey {
        let Self { registry, repository, tag, credential, .. } = self.clone();
        TagKey { registry, repository, tag, credential }
    }
}
