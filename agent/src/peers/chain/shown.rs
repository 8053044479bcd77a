//! What is shown of chains.

use std::sync::Arc;

use super::{Chain, Chains, Reading, Slot};
use crate::cluster::follow;
use crate::peers::owner::held;
use crate::peers::{ShownReading, ShownUpload};

impl Chains {
    pub(in crate::peers) fn shown(&self) -> (Vec<ShownReading>, Vec<ShownUpload>) {
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
