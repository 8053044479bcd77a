//! This node's part in one chain: what it reads itself, and who reads from it.
//!
//! The machines of both stand behind one lock, since a change of this node's place has to reach its readers before
//! anything is read under it. They are told what happens by whoever it happens to, on whatever thread; a task on the main
//! runtime sends what they want sent, and lets time pass for them.

mod child;
mod shown;
mod task;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_proto::peers::Beat as ProtoBeat;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::owner::held;
use super::{Inner, PeerError, Trace, messages};
use crate::cluster::chain::{Beat, Key, Parting, Ticket};
use crate::cluster::follow::{self, Action, Follow, Opening};
use crate::cluster::serve::Serve;
use crate::image::NodeId;

pub use child::{Child, Due};

/// Turns that may lead to a peer that is avoided, one after the other, until the next look.
const MOST_AVOIDED: usize = 8;

/// The chains that this node has a part in.
#[derive(Debug, Default)]
pub(super) struct Chains(Mutex<HashMap<Key, Arc<Chain>>>);

/// This node's part in one chain.
pub(super) struct Chain {
    inner: Arc<Inner>,
    key: Key,
    state: Mutex<State>,
    /// There is something to send, or an earlier deadline.
    woken: Notify,
    /// The turn may have changed.
    changed: watch::Sender<()>,
}

struct State {
    serve: Serve,
    /// What this node reads, by number. The last one counts: one before it is being given up.
    readings: BTreeMap<u64, Reading>,
    readers: HashMap<u64, Slot>,
    next: u64,
}

/// One transfer.
struct Reading {
    machine: Follow,
    trace: Trace,
    /// To be sent.
    outbox: Vec<Action>,
    frontier: u64,
    size: Option<u64>,
    /// Nobody drives it any more.
    left: bool,
    /// What the machine was last told of the peer that it reads from: why it moves.
    cause: &'static str,
    /// The stream that failed last has told so itself.
    failed: Option<NodeId>,
}

/// One who reads from here.
struct Slot {
    node: NodeId,
    trace: Trace,
    ticket: Option<Ticket>,
    sent: u64,
    parting: Option<Parting>,
    changed: Arc<Notify>,
}

impl Chains {
    /// Does something in a chain, which is made if there is none. It doesn't go meanwhile.
    fn enter<T>(&self, inner: &Arc<Inner>, key: &Key, act: impl FnOnce(&Arc<Chain>) -> T) -> T {
        let mut chains = held(&self.0);
        let chain = chains.entry(key.clone()).or_insert_with(|| Arc::new(Chain::new(Arc::clone(inner), key.clone())));
        act(chain)
    }

    fn find(&self, key: &Key) -> Option<Arc<Chain>> {
        held(&self.0).get(key).cloned()
    }

    /// Forgets a chain that this node has no part in any more.
    fn leave(&self, chain: &Chain) {
        let mut chains = held(&self.0);
        let state = held(&chain.state);
        let is_over = state.readings.is_empty() && state.readers.is_empty();
        drop(state);
        // The one that is known by now may be another: a pull that is tried again begins one while this one ends.
        if is_over && chains.get(&chain.key).is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), chain)) {
            chains.remove(&chain.key);
        }
    }
}

impl Chain {
    fn new(inner: Arc<Inner>, key: Key) -> Self {
        let serve = Serve::new(inner.node);
        let state = State { serve, readings: BTreeMap::new(), readers: HashMap::new(), next: 0 };
        Self { inner, key, state: Mutex::new(state), woken: Notify::new(), changed: watch::Sender::new(()) }
    }

    /// Begins to read; the number that the reading has from now on, and what changes with its turn.
    pub(super) fn begin(
        inner: &Arc<Inner>,
        sought: follow::Sought,
        size: Option<u64>,
        frontier: u64,
        trace: &Trace,
    ) -> (Arc<Self>, u64, watch::Receiver<()>) {
        let owners = inner.ring().owners_of(&sought.key.digest);
        let key = sought.key.clone();
        let machine = Follow::new(inner.now(), inner.node, sought, size, frontier, owners);
        let reading = Reading {
            machine,
            trace: trace.clone(),
            outbox: Vec::new(),
            frontier,
            size,
            left: false,
            cause: "other",
            failed: None,
        };
        let (chain, number) = inner.chains.enter(inner, &key, |chain| {
            let mut state = held(&chain.state);
            state.next += 1;
            let number = state.next;
            state.readings.insert(number, reading);
            state.serve.comes();
            state.serve.arrived(frontier, size);
            (Arc::clone(chain), number)
        });
        let changes = chain.changed.subscribe();
        chain.tell(number, |_, _| {});
        let task = Arc::clone(&chain).run(number);
        inner.tasks.spawn_on(task, &inner.runtime);
        (chain, number, changes)
    }

    pub(super) const fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(super) const fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn trace(&self, number: u64) -> Trace {
        held(&self.state).readings.get(&number).map(|reading| reading.trace.clone()).unwrap_or_default()
    }

    /// What a reading is to do now.
    pub(super) fn turn(&self, number: u64) -> follow::Turn {
        let state = held(&self.state);
        state.readings.get(&number).map_or(follow::Turn::Upstream { upto: u64::MAX }, |reading| reading.machine.turn())
    }

    pub(super) fn broken_sources(&self, number: u64) -> Vec<String> {
        let state = held(&self.state);
        state.readings.get(&number).map(|reading| reading.machine.broken_sources().to_vec()).unwrap_or_default()
    }

    /// Whether an owner has answered a reading, or it is over.
    pub(super) fn is_answered(&self, number: u64) -> bool {
        held(&self.state).readings.get(&number).is_none_or(|reading| reading.machine.is_answered())
    }

    /// Tells a reading's machine something, and does at once what can't wait of what it wants.
    pub(super) fn tell(&self, number: u64, tell: impl FnOnce(&mut Follow, Duration)) {
        let (now, late) = (self.inner.now(), self.inner.late());
        let mut state = held(&self.state);
        let is_last = state.readings.last_key_value().is_some_and(|(last, _)| *last == number);
        let State { serve, readings, .. } = &mut *state;
        let Some(reading) = readings.get_mut(&number) else { return };
        let heard = |machine: &Follow| (machine.is_answered(), machine.broken_sources().len());
        let (before, heard_before) = (reading.machine.turn(), heard(&reading.machine));
        reading.machine.expect(late);
        reading.machine.link_has_room(held(&self.inner.intake).room(now));
        reading.machine.readers_lag(serve.lag());
        reading.machine.pass_over(self.inner.slack.all(Instant::now()));
        tell(&mut reading.machine, now);
        let mut is_placed = false;
        for _ in 0..MOST_AVOIDED {
            for action in reading.machine.actions() {
                match action {
                    Action::Placed(ticket) if is_last => {
                        serve.placed(ticket);
                        is_placed = true;
                    }
                    Action::Yields if is_last => {
                        serve.yields();
                        is_placed = true;
                    }
                    Action::Placed(_) | Action::Yields => {}
                    Action::KeptWaiting(node) => self.inner.slack.kept_waiting(Instant::now(), node),
                    Action::Ask { .. } | Action::Report { .. } => reading.outbox.push(action),
                }
            }
            match reading.machine.turn() {
                follow::Turn::Peer(opening) if self.inner.avoided.holds(opening.node) => {
                    reading.machine.lost(now, opening.number);
                }
                _ => break,
            }
        }
        let after = reading.machine.turn();
        if before != after {
            self.turned(reading, before, after);
        }
        // An answer may come late, and change nothing but what is known.
        let is_news = before != after || heard_before != heard(&reading.machine);
        state.part(is_placed);
        drop(state);
        if is_news {
            self.changed.send_replace(());
        }
        self.woken.notify_one();
    }

    fn turned(&self, reading: &mut Reading, before: follow::Turn, after: follow::Turn) {
        let (pull, digest, ticket) = (&reading.trace, &self.key.digest, reading.machine.ticket());
        if let follow::Turn::Peer(left) = before
            && reading.size != Some(reading.frontier)
        {
            let is_silent = reading.machine.takes_for_silent(self.inner.now(), left.node);
            let is_slow = matches!(after, follow::Turn::Peer(opening) if opening.instead_of == Some(left.node));
            let reason = match reading.cause {
                "other" if is_silent => "dead",
                _ if is_slow && !is_silent => "slow",
                cause => cause,
            };
            if is_silent {
                self.inner.doubt(left.node);
            }
            self.inner.metrics.moved(reason);
            tracing::debug!(%pull, %digest, peer = %left.node, reason, at = reading.frontier, "moves on from a peer");
        }
        reading.cause = "other";
        match after {
            follow::Turn::Wait => tracing::debug!(%pull, %digest, "waits for the cluster"),
            follow::Turn::Upstream { upto } => tracing::debug!(%pull, %digest, upto, ?ticket, "fetches from upstream"),
            follow::Turn::Peer(Opening { node, .. }) => {
                tracing::debug!(%pull, %digest, peer = %node, ?ticket, "reads from a peer");
            }
        }
    }

    /// A peer has begun to answer.
    pub(super) fn opened(&self, number: u64, opening: u64) {
        if let Some(reading) = held(&self.state).readings.get_mut(&number) {
            reading.failed = None;
        }
        self.tell(number, |machine, now| machine.opened(now, opening));
    }

    /// A peer's beat. One that makes no sense says that it is alive, and no more.
    pub(super) fn beat(&self, number: u64, opening: u64, beat: ProtoBeat) {
        if let Ok(beat) = messages::beat(beat) {
            self.tell(number, |machine, now| machine.beat(now, opening, beat));
        }
    }

    /// What came from a peer waits here until then, by this node's own limits.
    pub(super) fn rests(&self, number: u64, opening: u64, until: Instant) {
        let until = until.saturating_duration_since(self.inner.started);
        self.tell(number, |machine, now| machine.rests(now, opening, until));
    }

    /// A peer is no use, or no more.
    pub(super) fn failed(&self, number: u64, opening: u64, node: NodeId, error: &PeerError) {
        if let Some(reading) = held(&self.state).readings.get_mut(&number) {
            reading.cause = error.label();
            reading.failed = Some(node);
            tracing::debug!(pull = %reading.trace, digest = %self.key.digest, %error, "a peer is no use");
        }
        if error.label() == "dead" {
            self.inner.doubt(node);
        }
        self.tell(number, |machine, now| match error {
            PeerError::Parted { parting, .. } => machine.parted(now, opening, parting),
            _ => machine.lost(now, opening),
        });
    }

    /// Whoever drives the reading has no use for what came from a peer, or gets nothing. What the stream has told itself
    /// isn't told again: another stream may have its turn by now, at the same peer even.
    pub(super) fn useless(&self, number: u64, node: NodeId) {
        if let Some(reading) = held(&self.state).readings.get_mut(&number)
            && reading.failed.take() == Some(node)
        {
            return;
        }
        self.tell(number, |machine, now| {
            if let follow::Turn::Peer(opening) = machine.turn()
                && opening.node == node
            {
                machine.lost(now, opening.number);
            }
        });
    }

    pub(super) fn learnt_size(&self, number: u64, size: u64) {
        if let Some(reading) = held(&self.state).readings.get_mut(&number) {
            reading.size = Some(size);
        }
        self.tell(number, |machine, _| machine.learnt_size(size));
    }

    /// Counted as they come: a frontier leaps over what others of the same transfer have fetched ahead of it.
    pub(super) fn received(&self, bytes: u64) {
        held(&self.inner.intake).came(self.inner.now(), bytes);
    }

    pub(super) fn arrived(&self, number: u64, frontier: u64) {
        {
            let mut state = held(&self.state);
            let Some(reading) = state.readings.get_mut(&number) else { return };
            reading.frontier = frontier;
            let size = reading.size;
            state.serve.arrived(frontier, size);
        }
        self.tell(number, |machine, now| machine.arrived(now, frontier));
    }

    pub(super) fn is_whole(&self, number: u64) {
        held(&self.state).serve.is_whole();
        self.tell(number, |machine, now| machine.is_whole(now));
    }

    /// Nobody drives it any more. The owner is told by the task.
    pub(super) fn leave(&self, number: u64) {
        if let Some(reading) = held(&self.state).readings.get_mut(&number) {
            reading.left = true;
        }
        self.tell(number, |machine, now| machine.leave(now));
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("key", &self.key).finish_non_exhaustive()
    }
}

impl State {
    /// Tells readers that are to leave. `all`: how far they may read has changed.
    fn part(&mut self, all: bool) {
        for (stream, parting) in self.serve.partings() {
            if let Some(slot) = self.readers.get_mut(&stream) {
                slot.parting = Some(parting);
                slot.changed.notify_one();
            }
        }
        if all {
            self.readers.values().for_each(|slot| slot.changed.notify_one());
        }
    }

    fn beat(&mut self, now: Duration, stream: u64) -> Beat {
        let reading = self.readings.last_key_value().map(|(_, reading)| &reading.machine);
        let rate = reading.map_or(0, |reading| reading.rate(now));
        self.serve.beat(stream, rate, reading.map_or(&[], Follow::path))
    }
}
