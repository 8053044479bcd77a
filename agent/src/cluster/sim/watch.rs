//! What must hold at every moment.

use crate::cluster::follow::Turn;

use super::events::Spot;
use super::world::World;

/// The most complaints that are kept.
const MAX: usize = 8;

impl World {
    pub(super) fn complain(&mut self, what: &str) {
        if self.wrong.len() < MAX {
            self.wrong.push(format!("at {:?}: {what}", self.now));
        }
    }

    /// Looks at everything, after each event.
    pub(super) fn watch(&mut self) {
        if std::mem::take(&mut self.is_graph_new) {
            for blob in 0..self.cluster.blobs.len() {
                self.watch_circles(blob);
            }
        }
        self.watch_leases();
    }

    /// The graph of who waits for whose bytes has no circle.
    fn watch_circles(&mut self, blob: usize) {
        for first in 0..self.nodes.len() {
            let mut at = first;
            for _ in 0..=self.nodes.len() {
                let Some(next) = self.waits_for(Spot { node: at, blob }) else { break };
                if next == first {
                    self.complain(&format!("a circle through node {first} for blob {blob}"));
                    return;
                }
                at = next;
            }
        }
    }

    /// Whose bytes a reader waits for: bytes that aren't there yet.
    fn waits_for(&self, spot: Spot) -> Option<usize> {
        let node = &self.nodes[spot.node];
        let blob = node.pulls[spot.blob].as_ref().filter(|blob| !blob.is_whole && node.is_up())?;
        let stream = &self.streams[blob.stream?];
        let number = blob.stream? as u64;
        if stream.sender == self.upstream() || !stream.is_open || stream.is_ended || stream.is_closed {
            return None;
        }
        let sender = self.nodes[stream.sender].pulls[spot.blob].as_ref()?;
        let waits = !sender.is_whole && sender.serve.bound(number).is_none() && self.nodes[stream.sender].is_up();
        waits.then_some(stream.sender)
    }

    /// One lease for each owner and blob, but after failures.
    fn watch_leases(&mut self) {
        let answers_are_late = !self.cluster.queue.is_zero();
        let may_be_more = !self.cluster.faults.is_empty() || answers_are_late || self.upstream_is_slow_to_answer();
        let most = if may_be_more { 8 } else { 1 };
        for blob in 0..self.cluster.blobs.len() {
            let key = Self::key(blob);
            for node in 0..self.nodes.len() {
                let Some(directory) = &self.nodes[node].directory else { continue };
                let leases = directory.leases(&key).count();
                if leases > most {
                    self.complain(&format!("{leases} leases on blob {blob} at owner {node}"));
                }
            }
        }
    }

    const fn upstream_is_slow_to_answer(&self) -> bool {
        self.cluster.upstream_delay.as_millis() > 500
    }

    /// Whoever misses bytes has a deadline, and who fetches fetches. Looked at every so often.
    pub(super) fn watch_deadlines(&mut self) {
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_up() {
                continue;
            }
            for blob in 0..self.cluster.blobs.len() {
                let Some(pull) = &self.nodes[node].pulls[blob] else { continue };
                let Some(follow) = pull.follow.as_ref().filter(|_| !pull.is_whole) else { continue };
                let reads = pull.stream.is_some();
                let goes_alone = matches!(follow.turn(), Turn::Upstream { .. });
                let is_late = follow.next_deadline().is_none() && !goes_alone;
                let is_idle = matches!(follow.turn(), Turn::Upstream { .. } | Turn::Peer(_)) && !reads;
                if is_late || is_idle {
                    let state = format!("{follow:?}");
                    self.complain(&format!("node {node} has no deadline, or does nothing, for blob {blob}: {state}"));
                }
            }
        }
    }
}
