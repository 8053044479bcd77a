use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use rand::RngExt as _;
use tokio::time::{Instant, MissedTickBehavior};

use super::messages::MOST_WATCHED;
use super::owner::held;
use super::{Backing, Inner, Peers};
use crate::cluster::Ring;
use crate::cluster::checks::{Answer, Standing, Watched, bucket_of_image, bucket_of_registry};
use crate::image::{NodeId, Registry};

/// Owners that are told at a time.
const AT_ONCE: usize = 8;
/// A member that isn't the owner in its own view names another, and that one another, until views agree.
const HOPS: usize = 3;
/// When to ask again where no owner answered.
const AGAIN: Duration = Duration::from_secs(10);
/// When to ask a new owner again, which may be given the book of the one before.
const HANDED_OVER: Duration = Duration::from_secs(30);
/// A new owner asks the one before for its book no more often than this.
const HAND_OVER_EVERY: Duration = Duration::from_secs(5);
/// How often owners write down what they know, and forget what is old.
const SWEEP: Duration = Duration::from_secs(60);

/// What the cluster says to one who would check images at a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// So many may begin, as long after the question as the registry's allowance says.
    Now(u32),
    /// None; to be asked again after so long.
    Later(Duration),
}

impl Peers {
    /// Asks the owner of a registry's budget for `wanted` checks. Takes at most half a minute.
    pub async fn grant_checks(&self, registry: &Registry, wanted: u32) -> Granted {
        match &self.0 {
            Backing::Cluster(inner) => inner.ask_for_checks(registry, wanted).await,
            #[cfg(test)]
            Backing::Script(_) => Granted::Later(AGAIN),
        }
    }

    /// Tells the owners of images what this node knows of them, and what they know in turn, in the same order; `None` of
    /// those whose owners didn't answer.
    pub async fn watch(&self, watched: Vec<Watched>) -> Vec<Option<Standing>> {
        match &self.0 {
            Backing::Cluster(inner) => inner.watch(watched).await,
            #[cfg(test)]
            Backing::Script(_) => watched.iter().map(|_| None).collect(),
        }
    }
}

impl Inner {
    async fn ask_for_checks(&self, registry: &Registry, wanted: u32) -> Granted {
        let owners = self.ring().owners(bucket_of_registry(registry));
        let Some(mut owner) = owners.first else { return Granted::Later(AGAIN) };
        for _ in 0..HOPS {
            owner = match self.ask_grant(owner, registry, wanted).await {
                Ok((Answer::Granted(granted), _)) => return Granted::Now(granted.min(wanted)),
                Ok((Answer::Later(wait), _)) => return Granted::Later(wait),
                // The owner before may hand over its book any moment.
                Ok((Answer::Unsure(wait), _)) => return Granted::Later(wait.min(HANDED_OVER)),
                Ok((Answer::NotOwner, Some(other))) if other != owner => other,
                Ok((Answer::NotOwner, _)) => break,
                Err(error) => {
                    tracing::debug!(%registry, %owner, %error, "the owner of a budget doesn't answer");
                    break;
                }
            };
        }
        Granted::Later(AGAIN)
    }

    /// As the owner of a registry's budget.
    pub(super) async fn grant_checks(&self, registry: &Registry, wanted: u32) -> Answer {
        let answer = self.grants.ask(registry, wanted).await;
        if !matches!(answer, Answer::Unsure(_)) || !self.is_handed_over(registry).await {
            return answer;
        }
        self.grants.ask(registry, wanted).await
    }

    /// Asks the owner before for its book.
    async fn is_handed_over(&self, registry: &Registry) -> bool {
        let Some(before) = self.ring().owners(bucket_of_registry(registry)).beside(self.node) else { return false };
        {
            let (mut asked, now) = (held(&self.handed), Instant::now());
            asked.retain(|_, at| now < *at + HAND_OVER_EVERY);
            if asked.insert(registry.clone(), now).is_some() {
                return false;
            }
        }
        match self.ask_hand_over(before, registry).await {
            Ok(Some(ages)) => {
                tracing::info!(%registry, from = %before, granted = ages.len(), "the budget of a registry is taken over");
                self.grants.take_over(registry, &ages).await;
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::debug!(%registry, from = %before, %error, "the owner before doesn't hand over");
                false
            }
        }
    }

    async fn watch(&self, watched: Vec<Watched>) -> Vec<Option<Standing>> {
        let ring = self.ring();
        let mut standings: Vec<Option<Standing>> = watched.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..watched.len()).collect();
        // The second owner where the first doesn't answer, or isn't it any more.
        for rank in 0..2 {
            let mut by_owner: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
            for at in left.drain(..) {
                if let Some(owner) = ring.owners(bucket_of_image(&watched[at].image)).iter().nth(rank) {
                    by_owner.entry(owner).or_default().push(at);
                }
            }
            let mut calls = Vec::new();
            for (owner, all) in by_owner {
                for some in all.chunks(MOST_WATCHED) {
                    let told = some.iter().map(|at| watched[*at].clone()).collect();
                    calls.push(self.tell_some(owner, some.to_vec(), told));
                }
            }
            let mut answers = stream::iter(calls).buffer_unordered(AT_ONCE);
            while let Some(answered) = answers.next().await {
                for (at, standing) in answered {
                    if standing.is_none() {
                        left.push(at);
                    }
                    standings[at] = standing;
                }
            }
        }
        standings
    }

    /// What an owner says of images, each with its place in the list.
    async fn tell_some(&self, owner: NodeId, places: Vec<usize>, told: Vec<Watched>) -> Vec<(usize, Option<Standing>)> {
        let answered = self.tell_watched(owner, told).await.unwrap_or_else(|error| {
            tracing::debug!(%owner, %error, "an owner of images doesn't answer");
            vec![None; places.len()]
        });
        places.into_iter().zip(answered).collect()
    }

    /// As an owner: what `from` says of images, and what it is told of them; `None` of those that aren't this node's.
    pub(super) fn watched_by(&self, from: NodeId, watched: Vec<Watched>) -> Vec<Option<Standing>> {
        let (ring, now) = (self.ring(), self.now());
        let mut board = held(&self.board);
        let told = watched.into_iter().map(|image| {
            let is_mine = ring.owners(bucket_of_image(&image.image)).contains(self.node);
            is_mine.then(|| board.told(now, from, image))
        });
        told.collect()
    }
}

/// Keeps what this node owns of checks in step with the members, until the node ends.
pub(super) async fn follow_ring(inner: Arc<Inner>) {
    let mut rings = inner.ring.clone();
    let mut before: Arc<Ring> = rings.borrow_and_update().clone();
    inner.grants.ring_changed(&before);
    let first = Instant::now() + SWEEP.mul_f64(rand::rng().random_range(0.5..1.0));
    let mut sweep = tokio::time::interval_at(first, SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            changed = rings.changed() => {
                if changed.is_err() {
                    return;
                }
                let ring = rings.borrow_and_update().clone();
                inner.grants.ring_changed(&ring);
                let gone = before.members().iter().filter(|member| ring.member(member.node).is_none());
                let mut board = held(&inner.board);
                gone.for_each(|member| board.forget(member.node));
                drop(board);
                before = ring;
            }
            _ = sweep.tick() => {
                inner.grants.renew().await;
                let (ring, now, me) = (inner.ring(), inner.now(), inner.node);
                held(&inner.board).sweep(now, |image| ring.owners(bucket_of_image(image)).contains(me));
            }
        }
    }
}
