//! This node as an owner: the machine of its part of the directory, given time and messages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Trace;
use super::metrics::PeerMetrics;
use crate::cluster::Ring;
use crate::cluster::chain::Lease;
use crate::cluster::directory::{
    Announced, Answer, Answered, Ask, AskId, Directory, Effect, Released, Report, Shelf, State, TagAnswer, TagAsk,
    TagKey, TagMeaning, Verdict,
};
use crate::image::NodeId;

/// The machine answers within a second and a half; who waits longer is told to go alone.
const PATIENCE: Duration = Duration::from_millis(1700);

/// The part of the directory that this node owns.
#[derive(Debug)]
pub(super) struct Owner {
    started: Instant,
    machine: Mutex<Directory>,
    waiting: Mutex<Waiting>,
    next_ask: AtomicU64,
    /// Something was asked or told: there may be an earlier deadline.
    woken: Notify,
    metrics: PeerMetrics,
}

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Waiting {
    blobs: HashMap<AskId, oneshot::Sender<Answered>>,
    tags: HashMap<AskId, oneshot::Sender<TagAnswer>>,
}

/// An ask that is forgotten when nobody waits for its answer any more.
struct Held<'a> {
    owner: &'a Owner,
    id: AskId,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut waiting = held(&self.owner.waiting);
        let waited = waiting.blobs.remove(&self.id).is_some() | waiting.tags.remove(&self.id).is_some();
        drop(waiting);
        if waited {
            held(&self.owner.machine).forget_ask(self.id);
        }
    }
}

/// Takes a lock whether or not its last holder panicked: the machines are sound between any two calls.
pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Owner {
    /// `started`: what the machines count time from.
    pub(super) fn new(node: NodeId, ring: Arc<Ring>, started: Instant, metrics: PeerMetrics) -> Self {
        Self {
            started,
            machine: Mutex::new(Directory::new(node, ring, rand::random())),
            waiting: Mutex::default(),
            next_ask: AtomicU64::new(0),
            woken: Notify::new(),
            metrics,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn hold(&self) -> Held<'_> {
        Held { owner: self, id: AskId(self.next_ask.fetch_add(1, Ordering::Relaxed)) }
    }

    /// Where `from` gets a blob from. Held for at most a second where there is something to wait for.
    pub(super) async fn ask(&self, from: NodeId, ask: &Ask, pull: &Trace) -> Answered {
        let asked = self.hold();
        let (sender, answer) = oneshot::channel();
        held(&self.waiting).blobs.insert(asked.id, sender);
        let digest = ask.key.digest;
        let effects = held(&self.machine).ask(self.now(), &mut rand::rng(), asked.id, from, ask);
        self.deliver(effects);
        let alone = Answered { answer: Answer::Alone { absent: false }, broken_sources: Vec::new() };
        let answered = timeout(PATIENCE, answer).await.ok().and_then(Result::ok).unwrap_or(alone);
        tracing::debug!(%pull, %digest, asker = %from, answer = ?answered.answer, "an owner answers");
        answered
    }

    /// What `from` says of its reading.
    pub(super) fn report(&self, from: NodeId, report: &Report) -> Verdict {
        let upto = |machine: &Directory| {
            let mut leases = machine.leases(&report.key);
            leases.find(|(node, ..)| *node == from).map(|(.., upto)| upto)
        };
        let (verdict, before, after) = {
            let mut machine = held(&self.machine);
            let before = upto(&machine);
            (machine.report(self.now(), from, report), before, upto(&machine))
        };
        match verdict {
            Verdict::Ended => self.metrics.lease("passed_on"),
            // For another range; or under a lease that another owner gave.
            Verdict::GoOn { .. } if after > before => self.metrics.lease("renewed"),
            Verdict::GoOn { .. } | Verdict::Noted => {}
        }
        match &report.state {
            State::Released(why) => self.metrics.lease(match why {
                Released::Absent => "lost_absent",
                Released::Unauthorized => "lost_unauthorized",
                Released::Unreachable => "lost_unreachable",
                Released::Slow => "lost_slow",
            }),
            State::Broken { sources, node } => {
                let digest = &report.key.digest;
                tracing::warn!(%digest, reader = %from, ?sources, peer = ?node, "a peer reports wrong bytes");
            }
            State::Fetching | State::Reading | State::Whole | State::Gone => {}
        }
        self.woken.notify_one();
        verdict
    }

    /// Whether an upstream broke a digest for any node, as far as was told. `broke`: for `from` it did.
    pub(super) fn suspect(&self, from: NodeId, upstream: &str, broke: bool) -> bool {
        let mut machine = held(&self.machine);
        if broke {
            tracing::debug!(upstream, reader = %from, "an upstream is said to have sent wrong bytes");
            machine.upstream_broke(self.now(), upstream);
        }
        machine.is_suspect(self.now(), upstream)
    }

    /// What `from` holds.
    pub(super) fn announce(&self, from: NodeId, shelves: Vec<Shelf>) -> Announced {
        let announced = held(&self.machine).announce(self.now(), from, shelves);
        self.metrics.set_known(self.known());
        self.woken.notify_one();
        announced
    }

    /// What a tag means, or whose turn it is to ask. Held for a second and a half at most.
    pub(super) async fn ask_tag(&self, from: NodeId, ask: &TagAsk, pull: &Trace) -> TagAnswer {
        let asked = self.hold();
        let (sender, answer) = oneshot::channel();
        held(&self.waiting).tags.insert(asked.id, sender);
        let effects = held(&self.machine).ask_tag(self.now(), &mut rand::rng(), asked.id, from, ask);
        self.deliver(effects);
        let answer = timeout(PATIENCE, answer).await.ok().and_then(Result::ok).unwrap_or(TagAnswer::Alone);
        let TagKey { registry, repository, tag, .. } = &ask.key;
        tracing::debug!(%pull, %registry, %repository, %tag, asker = %from, ?answer, "an owner answers");
        answer
    }

    /// What upstream said of a tag to who has this lease. Whether `from` was given it.
    pub(super) fn report_tag(&self, from: NodeId, key: &TagKey, lease: Lease, meaning: Option<TagMeaning>) -> bool {
        let effects = held(&self.machine).report_tag(self.now(), &mut rand::rng(), from, (key, lease), meaning);
        let is_given = effects.is_some();
        self.deliver(effects.unwrap_or_default());
        is_given
    }

    /// `from` still asks upstream what a tag means.
    pub(super) fn still_asks_tag(&self, from: NodeId, key: &TagKey, lease: Lease) {
        held(&self.machine).still_asks_tag(self.now(), from, key, lease);
    }

    /// Holdings of others that are known here.
    pub(super) fn known(&self) -> usize {
        let (_, holdings) = held(&self.machine).len();
        holdings
    }

    /// The newest that was told of a tag.
    pub(super) fn newest_tag(&self, key: &TagKey) -> Option<TagMeaning> {
        held(&self.machine).newest_tag(self.now(), key)
    }

    fn deliver(&self, effects: Vec<Effect>) {
        let mut waiting = held(&self.waiting);
        for effect in effects {
            // Who doesn't wait any more gets nothing.
            match effect {
                Effect::Answer { to, answered } => {
                    if let Some(sender) = waiting.blobs.remove(&to) {
                        if matches!(answered.answer, Answer::Fetch { .. }) {
                            self.metrics.lease("granted");
                        }
                        let _ = sender.send(answered);
                    }
                }
                Effect::Tag { to, answer } => {
                    if let Some(sender) = waiting.tags.remove(&to) {
                        let _ = sender.send(answer);
                    }
                }
            }
        }
        drop(waiting);
        self.woken.notify_one();
    }

    /// Whom it takes for members.
    #[cfg(test)]
    pub(super) fn ring(&self) -> Arc<Ring> {
        Arc::clone(held(&self.machine).ring())
    }

    /// Lets time pass for the machine, and tells it of the members, until `stop`.
    pub(super) async fn run(self: Arc<Self>, mut ring: watch::Receiver<Arc<Ring>>, stop: CancellationToken) {
        ring.mark_changed();
        loop {
            let deadline = self.started + held(&self.machine).next_deadline();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.woken.notified() => {}
                () = sleep_until(deadline) => {
                    let effects = held(&self.machine).tick(self.now(), &mut rand::rng());
                    self.deliver(effects);
                    self.metrics.set_known(self.known());
                }
                changed = ring.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let members = ring.borrow_and_update().clone();
                    let effects = held(&self.machine).ring_changed(self.now(), &mut rand::rng(), members);
                    self.deliver(effects);
                }
            }
        }
    }
}

/// Ends at a moment; never where there is none.
pub(super) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
