//! What tags mean: one asks upstream at a time, and the others wait for its answer.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::cluster::chain::Lease;
use crate::image::NodeId;

use super::words::{AskId, Effect, TagAnswer, TagAsk, TagKey, TagMeaning};

/// How long who asks upstream has for it.
const LEASE: Duration = Duration::from_secs(3);
/// How long another waits for it.
const HELD: Duration = Duration::from_millis(1_500);
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
    failures: u32,
    waiting: VecDeque<Waiting>,
    touched: Duration,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    node: NodeId,
    until: Duration,
}

#[derive(Debug)]
struct Waiting {
    id: AskId,
    node: NodeId,
    until: Duration,
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
        if let Some(meaning) = sought.meaning(now).filter(|meaning| meaning.age < ask.max_age) {
            return vec![Effect::Tag { to: id, answer: TagAnswer::Meaning(meaning) }];
        }
        if sought.leases.len() < sought.allowed() {
            let answer = sought.grant(now, rng, from);
            return vec![Effect::Tag { to: id, answer }];
        }
        sought.waiting.push_back(Waiting { id, node: from, until: now + HELD, failures: sought.failures });
        self.waiting += 1;
        Vec::new()
    }

    pub(super) fn told(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        key: &TagKey,
        lease: Lease,
        meaning: Option<TagMeaning>,
    ) -> Vec<Effect> {
        let Some(sought) = self.tags.get_mut(key) else { return Vec::new() };
        let known = sought.leases.len();
        sought.leases.retain(|held| held.lease != lease);
        if sought.leases.len() == known {
            return Vec::new();
        }
        let effects = match meaning {
            Some(meaning) => {
                sought.failures = 0;
                sought.meaning = Some(meaning.clone());
                sought.told = now;
                let waiting = sought.waiting.drain(..);
                waiting.map(|held| Effect::Tag { to: held.id, answer: TagAnswer::Meaning(meaning.clone()) }).collect()
            }
            None => sought.failed(now, rng),
        };
        self.count();
        effects
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
            let late = |held: &Held| held.until <= now;
            if sought.leases.iter().any(late) {
                sought.leases.retain(|held| !late(held));
                effects.append(&mut sought.failed(now, rng));
            }
            sought.waiting.retain(|waiting| {
                let waits = now < waiting.until;
                if !waits {
                    effects.push(Effect::Tag { to: waiting.id, answer: TagAnswer::Alone });
                }
                waits
            });
        }
        self.count();
        effects
    }

    pub(super) fn sweep(&mut self, now: Duration) {
        self.tags.retain(|_, sought| {
            sought.leases.retain(|held| now < held.until);
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
        self.leases.retain(|held| now < held.until);
        let lease = Lease(rng.random());
        self.leases.push(Held { lease, node, until: now + LEASE });
        TagAnswer::Lease(lease)
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
