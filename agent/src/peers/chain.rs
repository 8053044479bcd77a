//! This node's part in one chain: what it reads itself, and who reads from it.
//!
//! The machines of both stand behind one lock, since a change of this node's place has to reach its readers before
//! anything is read under it. They are told what happens by whoever it happens to, on whatever thread; a task on the main
//! runtime sends what they want sent, and lets time pass for them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use larder_proto::peers::Beat as ProtoBeat;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::calls::CallError;
use super::metrics::{Direction, Streaming};
use super::owner::{held, until};
use super::{Inner, PeerError, ReadAsk, ShownReading, ShownUpload, Trace, messages};
use crate::cluster::chain::{Beat, Hop, Key, Lease, Parting, Ticket};
use crate::cluster::directory::{Answer, Answered, Verdict};
use crate::cluster::follow::{self, Action, Follow, Opening};
use crate::cluster::serve::{Reader, Serve};
use crate::image::NodeId;

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

/// What became of something that was sent.
enum Done {
    Asked(u64, Result<Answered, CallError>),
    /// To whom, and under which lease: of others the machine doesn't want to know.
    Reported(NodeId, Option<Lease>, Result<Verdict, CallError>),
    Nothing,
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
        if state.readings.is_empty() && state.readers.is_empty() {
            drop(state);
            chains.remove(&chain.key);
        }
    }

    pub(super) fn shown(&self) -> (Vec<ShownReading>, Vec<ShownUpload>) {
        let chains: Vec<Arc<Chain>> = held(&self.0).values().cloned().collect();
        let (mut readings, mut uploads) = (Vec::new(), Vec::new());
        for chain in chains {
            let state = held(&chain.state);
            readings.extend(state.readings.values().map(|reading| chain.shown_reading(reading)));
            uploads.extend(state.readers.values().map(|slot| chain.shown_upload(slot)));
        }
        (readings, uploads)
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
        reading.machine.readers_lag(serve.lag());
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
            let is_slow = matches!(after, follow::Turn::Peer(opening) if opening.instead_of == Some(left.node));
            let reason = if is_slow { "slow" } else { reading.cause };
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

    /// Sends what the machines of one reading want sent, and lets time pass for them, until it is over.
    async fn run(self: Arc<Self>, number: u64) {
        let (mut ring, mut has_members) = (self.inner.ring.clone(), true);
        ring.mark_unchanged();
        let mut calls = FuturesUnordered::new();
        while let Some(next) = self.next(number) {
            for action in next.outbox {
                calls.push(self.perform(action, next.trace.clone()));
            }
            if next.is_over && calls.is_empty() {
                break;
            }
            tokio::select! {
                () = self.inner.stop.cancelled() => break,
                () = self.woken.notified() => {}
                () = until(next.deadline) => self.tick(number),
                Some(done) = calls.next(), if !calls.is_empty() => self.done(number, done),
                changed = ring.changed(), if has_members => {
                    // When the node ends, what is under way goes on with the members that were known last.
                    has_members = changed.is_ok();
                    let owners = ring.borrow_and_update().owners_of(&self.key.digest);
                    self.tell(number, |machine, now| machine.owners_changed(now, owners));
                }
            }
        }
        held(&self.state).readings.remove(&number);
        self.changed.send_replace(());
        self.inner.chains.leave(&self);
    }

    fn next(&self, number: u64) -> Option<Next> {
        let mut state = held(&self.state);
        let serving = state.serve.next_deadline();
        let reading = state.readings.get_mut(&number)?;
        let following = reading.machine.next_deadline();
        let outbox = std::mem::take(&mut reading.outbox);
        let is_over = reading.left && following.is_none() && outbox.is_empty();
        let deadline = [serving, following].into_iter().flatten().min();
        let deadline = deadline.map(|at| self.inner.started + at);
        Some(Next { outbox, trace: reading.trace.clone(), deadline, is_over })
    }

    fn tick(&self, number: u64) {
        held(&self.state).serve.tick(self.inner.now());
        self.tell(number, |machine, now| machine.tick(now));
    }

    fn perform(self: &Arc<Self>, action: Action, trace: Trace) -> BoxFuture<'static, Done> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            match action {
                Action::Ask { number, owner, ask } => {
                    let (asked, is_again) = (Instant::now(), ask.ticket.is_some() || !ask.troubles.is_empty());
                    let digest = ask.key.digest;
                    let answered = inner.ask(owner, &ask, &trace).await;
                    inner.metrics.looked_up(label(&answered), asked.elapsed(), is_again);
                    match &answered {
                        Ok(answered) => {
                            tracing::debug!(pull = %trace, %digest, %owner, answer = ?answered.answer, "asked an owner");
                        }
                        Err(error) => {
                            tracing::debug!(pull = %trace, %digest, %owner, %error, "an owner doesn't answer");
                        }
                    }
                    Done::Asked(number, answered)
                }
                Action::Report { owner, report } => {
                    Done::Reported(owner, report.lease, inner.report(owner, &report).await)
                }
                // They were done at once.
                Action::Placed(_) | Action::Yields => Done::Nothing,
            }
        })
    }

    fn done(&self, number: u64, done: Done) {
        match done {
            Done::Asked(asked, Ok(answered)) => {
                if matches!(answered.answer, Answer::Fetch { .. }) {
                    self.inner.metrics.lease("held");
                }
                self.tell(number, |machine, now| machine.answered(now, asked, answered));
            }
            Done::Asked(asked, Err(_)) => self.tell(number, |machine, now| machine.unanswered(now, asked)),
            Done::Reported(_, Some(lease), Ok(verdict)) => {
                self.tell(number, |machine, now| machine.reported(now, lease, verdict));
            }
            Done::Reported(owner, Some(lease), Err(_)) => {
                self.tell(number, |machine, now| machine.unreported(now, owner, lease));
            }
            Done::Reported(_, None, _) | Done::Nothing => {}
        }
    }

    /// Takes a reader of what is here. `whole`: all of it is, and verified.
    pub(super) fn admit(
        inner: &Arc<Inner>,
        node: NodeId,
        ask: &ReadAsk,
        whole: bool,
        place: OwnedSemaphorePermit,
    ) -> Result<Child, Parting> {
        let member = inner.ring().member(node).cloned();
        let zone = member.map(|member| member.zone).unwrap_or_default();
        let counted = inner.metrics.streaming(Direction::Out, inner.nearness(&zone));
        let ReadAsk { ticket, instead_of, insists, from, .. } = *ask;
        let reader = Reader { node, ticket, instead_of, insists, from };
        let changed = Arc::new(Notify::new());
        let slot = Slot {
            node,
            trace: ask.trace.clone(),
            ticket: ask.ticket,
            sent: 0,
            parting: None,
            changed: Arc::clone(&changed),
        };
        let (admitted, chain) = inner.chains.enter(inner, &ask.key, |chain| {
            let now = inner.now();
            let mut state = held(&chain.state);
            if whole {
                state.serve.is_whole();
            }
            state.next += 1;
            let stream = state.next;
            let admitted = match (ask.aside, whole) {
                (false, _) => state.serve.admit(now, stream, &reader).map(|()| stream),
                (true, true) => Ok(stream),
                (true, false) => Err(Parting::Absent),
            };
            if admitted.is_ok() {
                state.readers.insert(stream, slot);
            }
            state.part(false);
            (admitted, Arc::clone(chain))
        });
        match admitted {
            Ok(stream) => Ok(Child { chain, stream, changed, counted, _place: place }),
            Err(parting) => {
                inner.chains.leave(&chain);
                Err(parting)
            }
        }
    }

    /// What this node says of itself to one who waits for a blob to begin here.
    pub(super) fn beat_of(inner: &Inner, key: &Key) -> Beat {
        let hop = |ticket, frontier| Hop { node: inner.node, ticket, frontier, rate: 0 };
        let Some(chain) = inner.chains.find(key) else { return Beat { path: vec![hop(None, 0)] } };
        let state = held(&chain.state);
        let reading = state.readings.last_key_value().map(|(_, reading)| reading);
        let mut path = vec![hop(
            reading.and_then(|reading| reading.machine.ticket()),
            reading.map_or(0, |reading| reading.frontier),
        )];
        path.extend(reading.into_iter().flat_map(|reading| reading.machine.path()).take(Beat::MAX_PATH - 1));
        Beat { path }
    }

    fn shown_reading(&self, reading: &Reading) -> ShownReading {
        let (turn, upto, parent) = match reading.machine.turn() {
            follow::Turn::Wait => ("waits", None, None),
            follow::Turn::Upstream { upto } => ("fetches", (upto != u64::MAX).then_some(upto), None),
            follow::Turn::Peer(opening) => ("reads", None, Some(opening.node.to_string())),
        };
        let owner = self.inner.ring().owners_of(&self.key.digest).first;
        ShownReading {
            digest: self.key.digest,
            registry: self.key.registry.to_string(),
            pull: reading.trace.to_string(),
            turn: turn.to_owned(),
            upto,
            ticket: reading.machine.ticket().map(|ticket| ticket.number),
            parent,
            owner: owner.map(|owner| owner.to_string()),
            frontier: reading.frontier,
            size: reading.size,
        }
    }

    fn shown_upload(&self, slot: &Slot) -> ShownUpload {
        ShownUpload {
            digest: self.key.digest,
            node: slot.node.to_string(),
            pull: slot.trace.to_string(),
            ticket: slot.ticket.map(|ticket| ticket.number),
            sent: slot.sent,
        }
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What a task has to do.
struct Next {
    outbox: Vec<Action>,
    trace: Trace,
    deadline: Option<Instant>,
    is_over: bool,
}

fn label(answered: &Result<Answered, CallError>) -> &'static str {
    match answered {
        Ok(Answered { answer: Answer::Fetch { .. }, .. }) => "fetch",
        Ok(Answered { answer: Answer::Read { .. }, .. }) => "read",
        Ok(Answered { answer: Answer::NotOwner(_), .. }) => "not_owner",
        Ok(Answered { answer: Answer::Alone { .. }, .. }) => "alone",
        Err(CallError::LeftAlone) => "left_alone",
        Err(_) => "failed",
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

/// A peer that reads from here. Dropped, it has left.
#[derive(Debug)]
pub struct Child {
    chain: Arc<Chain>,
    stream: u64,
    changed: Arc<Notify>,
    counted: Streaming,
    _place: OwnedSemaphorePermit,
}

impl Child {
    /// How to part from it now, if at all. `at`: the next byte that it gets.
    pub fn verdict(&mut self, at: u64) -> Option<Parting> {
        let mut state = held(&self.chain.state);
        if let Some(parting) = state.readers.get_mut(&self.stream).and_then(|slot| slot.parting.take()) {
            return Some(parting);
        }
        let is_over = state.serve.bound(self.stream).is_some_and(|bound| at >= bound);
        is_over.then_some(Parting::Yielded)
    }

    /// Ends when the verdict may have changed. Cancelling it loses nothing.
    pub async fn changed(&mut self) {
        self.changed.notified().await;
    }

    /// What it is told every 200 ms. `frontier`: every byte before it is here.
    pub fn beat(&mut self, frontier: u64) -> ProtoBeat {
        let now = self.chain.inner.now();
        let mut state = held(&self.chain.state);
        if state.readings.is_empty() {
            // Nobody else tells it.
            state.serve.arrived(frontier, None);
        }
        state.serve.tick(now);
        state.part(false);
        messages::beat_of(&state.beat(now, self.stream))
    }

    /// So many bytes have gone to its connection.
    pub fn sent(&mut self, bytes: u64) {
        let mut state = held(&self.chain.state);
        state.serve.sent(self.stream, bytes);
        if let Some(slot) = state.readers.get_mut(&self.stream) {
            slot.sent += bytes;
        }
        state.part(false);
        drop(state);
        self.counted.add(bytes);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let mut state = held(&self.chain.state);
        state.serve.ended(self.stream);
        state.readers.remove(&self.stream);
        state.part(false);
        drop(state);
        self.chain.woken.notify_one();
        self.chain.inner.chains.leave(&self.chain);
    }
}
