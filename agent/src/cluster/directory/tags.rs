//! What tags mean: one asks upstream at a time, and the others wait for its answer.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::cluster::chain::Lease;
use crate::image::NodeId;

use super::words::{AskId, Effect, TagAnswer, TagAsk, TagKey, TagMeaning};

/// How long who asks upstream has until it answers, or says that it still asks.
const LEASE: Duration = Duration::from_secs(2);
/// How long another's question is held; then it may come again.
const HELD: Duration = Duration::from_millis(1_500);
/// An answer that is late is taken for so long: it is as right as any.
const LATE: Duration = Duration::from_secs(30);
/// After so many failures nobody waits any more.
const PATIENCE: u32 = 2;
/// How long an answer is remembered, for when no upstream answers.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
const MAX_TAGS: usize = 65_536;
const MAX_WAITING: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Tags {
    tags: HashMap<TagKey, Sought>,
    waiting: usize,
}

#[derive(Debug, Default)]
struct Sought {
    meaning: Option<TagMeaning>,
    /// When the meaning was as old as it says.
    told: Duration,
    leases: Vec<Held>,
    /// Whose holders weren't heard of in time.
    overdue: Vec<Held>,
    failures: u32,
    waiting: VecDeque<Waiting>,
    touched: Duration,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    node: NodeId,
    /// When it is overdue; and if it is, when it is forgotten.
    until: Duration,
}

impl Held {
    fn is(&self, lease: Lease, node: NodeId) -> bool {
        self.lease == lease && self.node == node
    }
}

#[derive(Debug)]
struct Waiting {
    id: AskId,
    node: NodeId,
    until: Duration,
    /// Told that another still asks, it asks again.
    comes_again: bool,
    /// How many had failed when it began to wait.
    failures: u32,
}

impl Tags {
    pub(super) fn ask(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        id: AskId,
        from: NodeId,
        ask: &TagAsk,
    ) -> Vec<Effect> {
        let is_full = self.waiting >= MAX_WAITING || (self.tags.len() >= MAX_TAGS && !self.tags.contains_key(&ask.key));
        if is_full {
            return vec![Effect::Tag { to: id, answer: TagAnswer::Alone }];
        }
        let sought = self.tags.entry(ask.key.clone()).or_default();
        sought.touched = now;
        let young = ask.max_age.max(ask.waited.unwrap_or_default());
        if let Some(meaning) = sought.meaning(now).filter(|meaning| meaning.age < young) {
            return vec![Effect::Tag { to: id, answer: TagAnswer::Meaning(meaning) }];
        }
        if sought.leases.len() < sought.allowed() {
            let answer = sought.grant(now, rng, from);
            return vec![Effect::Tag { to: id, answer }];
        }
        let (until, comes_again, failures) = (now + HELD, ask.waited.is_some(), sought.failures);
        sought.waiting.push_back(Waiting { id, node: from, until, comes_again, failures });
        self.waiting += 1;
        Vec::new()
    }

    /// `None` when it isn't this node's lease.
    pub(super) fn told(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        from: NodeId,
        (key, lease): (&TagKey, Lease),
        meaning: Option<TagMeaning>,
    ) -> Option<Vec<Effect>> {
        let sought = self.tags.get_mut(key)?;
        let in_time = take(&mut sought.leases, lease, from);
        if !in_time && !take(&mut sought.overdue, lease, from) {
            return None;
        }
        let effects = match meaning {
            Some(meaning) => {
                sought.failures = 0;
                sought.meaning = Some(meaning.clone());
                sought.told = now;
                let waiting = sought.waiting.drain(..);
                waiting.map(|held| Effect::Tag { to: held.id, answer: TagAnswer::Meaning(meaning.clone()) }).collect()
            }
            None if in_time => sought.failed(now, rng),
            // It counted as a failure when it was overdue.
            None => Vec::new(),
        };
        self.count();
        Some(effects)
    }

    pub(super) fn still_asks(&mut self, now: Duration, from: NodeId, key: &TagKey, lease: Lease) {
        let leases = self.tags.get_mut(key).map(|sought| &mut sought.leases);
        for held in leases.into_iter().flatten().filter(|held| held.is(lease, from)) {
            held.until = now + LEASE;
        }
    }

    /// What is known of a tag, however old.
    pub(super) fn newest(&self, now: Duration, key: &TagKey) -> Option<TagMeaning> {
        self.tags.get(key)?.meaning(now)
    }

    pub(super) fn forget_ask(&mut self, id: AskId) {
        for sought in self.tags.values_mut() {
            sought.waiting.retain(|waiting| waiting.id != id);
        }
        self.count();
    }

    pub(super) fn forget_node(&mut self, now: Duration, rng: &mut impl Rng, node: NodeId) -> Vec<Effect> {
        let mut effects = Vec::new();
        for sought in self.tags.values_mut() {
            sought.waiting.retain(|waiting| waiting.node != node);
            let held = sought.leases.len();
            sought.leases.retain(|held| held.node != node);
            sought.overdue.retain(|held| held.node != node);
            if sought.leases.len() < held {
                effects.append(&mut sought.failed(now, rng));
            }
        }
        self.count();
        effects
    }

    pub(super) fn tick(&mut self, now: Duration, rng: &mut impl Rng) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.waiting == 0 {
            return effects;
        }
        for sought in self.tags.values_mut().filter(|sought| !sought.waiting.is_empty()) {
            if sought.expire(now) {
                effects.append(&mut sought.failed(now, rng));
            }
            sought.waiting.retain(|waiting| {
                let waits = now < waiting.until;
                if !waits {
                    let answer = if waiting.comes_again { TagAnswer::StillAsked } else { TagAnswer::Alone };
                    effects.push(Effect::Tag { to: waiting.id, answer });
                }
                waits
            });
        }
        self.count();
        effects
    }

    pub(super) fn sweep(&mut self, now: Duration) {
        self.tags.retain(|_, sought| {
            sought.expire(now);
            !sought.waiting.is_empty() || now.saturating_sub(sought.touched) < REMEMBERED
        });
    }

    pub(super) const fn waits(&self) -> bool {
        self.waiting > 0
    }

    fn count(&mut self) {
        self.waiting = self.tags.values().map(|sought| sought.waiting.len()).sum();
    }
}

impl Sought {
    fn meaning(&self, now: Duration) -> Option<TagMeaning> {
        let meaning = self.meaning.clone()?;
        let age = meaning.age + now.saturating_sub(self.told);
        (age < REMEMBERED).then_some(TagMeaning { age, ..meaning })
    }

    /// After k failures 2^k ask at once.
    fn allowed(&self) -> usize {
        1 << self.failures.min(4)
    }

    fn grant(&mut self, now: Duration, rng: &mut impl Rng, node: NodeId) -> TagAnswer {
        self.expire(now);
        let lease = Lease(rng.random());
        self.leases.push(Held { lease, node, until: now + LEASE });
        TagAnswer::Lease(lease)
    }

    /// Leases that are overdue count no more, but for an answer that comes late. Whether some have become so.
    fn expire(&mut self, now: Duration) -> bool {
        self.overdue.retain(|held| now < held.until);
        let known = self.overdue.len();
        let late = self.leases.extract_if(.., |held| held.until <= now);
        self.overdue.extend(late.map(|held| Held { until: now + LATE, ..held }));
        self.overdue.len() > known
    }

    /// One has failed: others go on, and who has waited for two waits no more.
    fn failed(&mut self, now: Duration, rng: &mut impl Rng) -> Vec<Effect> {
        self.failures = self.failures.saturating_add(1);
        let mut effects = Vec::new();
        let failures = self.failures;
        self.waiting.retain(|waiting| {
            let waits = failures - waiting.failures < PATIENCE;
            if !waits {
                effects.push(Effect::Tag { to: waiting.id, answer: TagAnswer::Alone });
            }
            waits
        });
        while self.leases.len() < self.allowed() {
            let Some(next) = self.waiting.pop_front() else { break };
            let answer = self.grant(now, rng, next.node);
            effects.push(Effect::Tag { to: next.id, answer });
        }
        effects
    }
}

/// Takes a lease out of these. Whether it was among them, and this node's.
fn take(leases: &mut Vec<Held>, lease: Lease, node: NodeId) -> bool {
    leases.extract_if(.., |held| held.is(lease, node)).count() > 0
}
