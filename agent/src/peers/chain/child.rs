//! A peer that reads from here.

use std::sync::Arc;

use larder_proto::peers::Beat as ProtoBeat;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::{Chain, Slot};
use crate::cluster::chain::{Beat, Hop, Parting};
use crate::cluster::serve::Reader;
use crate::image::NodeId;
use crate::peers::metrics::{Direction, Streaming};
use crate::peers::owner::held;
use crate::peers::{Inner, ReadAsk, messages};

/// A peer that reads from here. Dropped, it has left.
#[derive(Debug)]
pub struct Child {
    chain: Arc<Chain>,
    stream: u64,
    changed: Arc<Notify>,
    counted: Streaming,
    _place: OwnedSemaphorePermit,
}

impl Chain {
    /// Takes a reader of what is here. `whole`: all of it is, and verified.
    pub(in crate::peers) fn admit(
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
    ///
    /// # Errors
    /// It stands before that one by now: each would wait for the other to begin.
    pub(in crate::peers) fn says_while_it_begins(inner: &Inner, ask: &ReadAsk) -> Result<Beat, Parting> {
        let hop = |ticket, frontier| Hop { node: inner.node, ticket, frontier, rate: 0 };
        let Some(chain) = inner.chains.find(&ask.key) else { return Ok(Beat { path: vec![hop(None, 0)] }) };
        let state = held(&chain.state);
        let reading = state.readings.last_key_value().map(|(_, reading)| reading);
        let (ticket, frontier) = reading.map_or((None, 0), |reading| (reading.machine.ticket(), reading.frontier));
        let is_above = ticket.zip(ask.ticket).is_some_and(|(mine, its)| mine >= its);
        if is_above && frontier <= ask.from {
            return Err(Parting::NotLower);
        }
        let mut path = vec![hop(ticket, frontier)];
        path.extend(reading.into_iter().flat_map(|reading| reading.machine.path()).take(Beat::MAX_PATH - 1));
        Ok(Beat { path })
    }
}

/// What a reader is to get.
#[derive(Debug)]
pub enum Due {
    /// All that comes.
    More,
    /// What is here by now: it is to fetch what follows.
    Rest,
    /// Nothing more, for this reason.
    Parting(Parting),
}

impl Child {
    /// What it is to get now. `at`: the next byte that it gets.
    pub fn due(&mut self, at: u64) -> Due {
        let mut state = held(&self.chain.state);
        if let Some(parting) = state.readers.get_mut(&self.stream).and_then(|slot| slot.parting.take()) {
            return Due::Parting(parting);
        }
        match state.serve.bound(self.stream) {
            None => Due::More,
            Some(bound) if at < bound => Due::Rest,
            Some(_) => Due::Parting(Parting::Yielded),
        }
    }

    /// Ends when what is due may have changed. Cancelling it loses nothing.
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
