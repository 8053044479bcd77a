//! What must hold at every moment.

use std::time::Duration;

use crate::cluster::follow::{Follow, Turn};
use crate::image::NodeId;

use super::events::Spot;
use super::node::Blob;
use super::plan::Fault;
use super::world::World;

/// The most complaints that are kept.
const MAX: usize = 8;
/// An owner that takes longer to answer is passed over.
const LATE: Duration = Duration::from_millis(100);
/// So many leases at once after failures: when upstream comes back, each may bring a copy.
const MOST_LEASES: u64 = 8;
/// What may be on its way to who has just left, in bytes, where there is no fault.
const IN_THE_PIPE: u64 = 8 << 20;
/// Patience is two seconds, or four where answers are late; when it ends in vain, a complaint that nobody hears begins it anew.
const CUT_OFF: Duration = Duration::from_secs(8);
/// The same, and what it takes to come to another.
const GAP: Duration = Duration::from_secs(10);
/// Each of up to 16 complaints of one blob gives a second and a half to wait.
const WAITS: Duration = Duration::from_secs(17 * 3 / 2);
/// As often as upstream can fail, 200 ms after it was asked, before patience has ended twice.
const FAILURES: u32 = 40;
/// A pause that isn't waiting yet.
const PAUSE: Duration = Duration::from_millis(500);
/// For so long a node is known to have nothing of a blob.
const BELIEVED: Duration = Duration::from_secs(60);

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

    /// Readers that miss bytes, as they are every so often; they were looked at before so long ago.
    pub(super) fn watch_readers(&mut self, since: Duration) {
        for node in 0..self.nodes.len() {
            for blob in 0..self.cluster.blobs.len() {
                if self.nodes[node].is_up() {
                    let spot = Spot { node, blob };
                    self.watch_deadline(spot);
                    self.watch_way(spot);
                    self.watch_owners(spot);
                    self.watch_patience(spot, since);
                }
            }
        }
    }

    /// Whoever misses bytes has a deadline, and who fetches fetches.
    fn watch_deadline(&mut self, spot: Spot) {
        let Some((pull, follow)) = self.missing(spot) else { return };
        let reads = pull.stream.is_some();
        let goes_alone = matches!(follow.turn(), Turn::Upstream { .. });
        let is_late = follow.next_deadline().is_none() && !goes_alone;
        let is_idle = matches!(follow.turn(), Turn::Upstream { .. } | Turn::Peer(_)) && !reads;
        if is_late || is_idle {
            let state = format!("{follow:?}");
            self.complain(&format!("{spot:?} has no deadline, or does nothing: {state}"));
        }
    }

    /// From whoever waits a way leads to who has more, or to upstream, or one on it asks an owner that lives; if not, it is
    /// found out soon.
    fn watch_way(&mut self, spot: Spot) {
        let (now, has_way) = (self.now, self.has_way(spot));
        let is_healthy = self.nodes[spot.node].is_healthy;
        let Some(pull) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        if has_way || pull.is_whole {
            pull.cut_off_since = None;
            return;
        }
        let cut_off = now - *pull.cut_off_since.get_or_insert(now);
        if is_healthy && cut_off > self.cut_off {
            self.cut_off = cut_off;
        }
    }

    fn has_way(&self, spot: Spot) -> bool {
        let mut at = spot;
        for _ in 0..=self.nodes.len() {
            let Some((pull, follow)) = self.missing(at) else { return false };
            if follow.asked().any(|owner| self.is_near(at.node, self.by_id[&owner])) {
                return true;
            }
            let Some(number) = pull.stream else { return false };
            let stream = &self.streams[number];
            if stream.sender == self.upstream() {
                return true;
            }
            if stream.is_ended || !self.is_near(at.node, stream.sender) {
                return false;
            }
            let sender = Spot { node: stream.sender, ..at };
            let Some(theirs) = &self.nodes[sender.node].pulls[sender.blob] else { return false };
            if theirs.is_whole || theirs.frontier > pull.frontier {
                return true;
            }
            at = sender;
        }
        false
    }

    /// Upstream's bytes have come to a reader.
    pub(super) fn watch_upstream(&mut self, spot: Spot, from: u64, bytes: u64) {
        let Some(owner) = self.owner_of_lease(spot) else { return };
        let others = (0..self.nodes.len()).filter(|node| *node != spot.node && self.nodes[*node].is_up());
        let others = others.map(|node| Spot { node, ..spot });
        let had =
            others.filter(|other| self.owner_of_lease(*other) == Some(owner)).map(|other| self.frontier(other)).max();
        self.twice += had.map_or(0, |had| had.saturating_sub(from).min(bytes));
    }

    fn owner_of_lease(&self, spot: Spot) -> Option<NodeId> {
        self.nodes[spot.node].pulls[spot.blob].as_ref()?.follow.as_ref()?.owner_of_lease()
    }

    fn frontier(&self, spot: Spot) -> u64 {
        self.nodes[spot.node].pulls[spot.blob].as_ref().map_or(0, |blob| blob.frontier)
    }

    /// A node is about to be out of everybody's reach, or to forget: what it alone has has to come once more.
    pub(super) fn is_lost(&mut self, node: usize) {
        for blob in 0..self.cluster.blobs.len() {
            let others = (0..self.nodes.len()).filter(|other| *other != node && self.is_near(node, *other));
            let had = others.map(|node| self.frontier(Spot { node, blob })).max().unwrap_or(0);
            self.needed += self.frontier(Spot { node, blob }).saturating_sub(had);
        }
    }

    fn watch_owners(&mut self, spot: Spot) {
        let owners = self.nodes[spot.node].ring.owners_of(&Self::key(spot.blob).digest);
        let answers = |owner: NodeId| {
            let (number, queues) = (self.by_id[&owner], !self.cluster.queue.is_zero());
            let node = &self.nodes[number];
            self.is_near(spot.node, number) && node.lateness < LATE && (node.is_healthy || !queues)
        };
        if self.missing(spot).is_some() && !owners.iter().any(answers) {
            self.nodes[spot.node].was_without_owner = true;
        }
    }

    /// Whatever went wrong, what it cost is bounded. Each thing that went wrong may have one fetch besides who fetches already:
    /// the next owner's first, for who asked it; who lost its way; who is cut off from those that have more. A slow node
    /// fetches for itself, and throws away what is on its way to it each time it tries another. Who reaches neither owner in
    /// time helps himself.
    pub(super) fn watch_costs(&mut self) {
        let total: u64 = self.cluster.blobs.iter().sum();
        let is_slow = |fault: &Fault| matches!(fault, Fault::Slow(..));
        let slow = self.cluster.faults.iter().filter(|(_, fault)| is_slow(fault)).count() as u64;
        let faults = self.cluster.faults.len() as u64 + slow;
        let is_outage = self.cluster.faults.iter().any(|(_, fault)| *fault == Fault::UpstreamGone);
        let alone = self.nodes.iter().filter(|node| node.was_without_owner).count() as u64;
        let more_leases = if is_outage { MOST_LEASES - 1 } else { 0 };
        let beside = faults + more_leases + alone;
        if self.upstream_bytes > self.needed + beside * total + IN_THE_PIPE {
            let copies = self.upstream_bytes as f64 / total as f64;
            self.complain(&format!("{copies:.2} copies, where {} bytes and {beside} more will do", self.needed));
        }
        if self.twice > (faults + more_leases) * total + IN_THE_PIPE {
            self.complain(&format!("{} bytes came twice at one owner's word", self.twice));
        }
        let gap = self.nodes.iter().filter(|node| node.is_healthy).map(|node| node.longest_gap).max();
        if let Some(gap) = gap.filter(|gap| !is_outage && *gap > GAP) {
            self.complain(&format!("somebody had nothing for {gap:?}"));
        }
        if self.cut_off > CUT_OFF {
            self.complain(&format!("somebody was cut off for {:?}", self.cut_off));
        }
        if self.waited > WAITS {
            self.complain(&format!("somebody waited for {:?} in all", self.waited));
        }
        if self.failures > FAILURES {
            self.complain(&format!("somebody waited while {} others failed in a row", self.failures));
        }
    }

    /// A reader waits for the cluster no longer than its patience.
    fn watch_patience(&mut self, spot: Spot, since: Duration) {
        let (now, is_healthy) = (self.now, self.nodes[spot.node].is_healthy);
        let Some((pull, follow)) = self.missing(spot) else { return };
        let waits = !matches!(follow.turn(), Turn::Upstream { .. }) && now - pull.last_byte > PAUSE;
        if !waits || !is_healthy {
            return;
        }
        let Some(pull) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        pull.waited += since;
        self.waited = self.waited.max(pull.waited);
    }

    /// What a node reads, and hasn't got all of.
    fn missing(&self, spot: Spot) -> Option<(&Blob, &Follow)> {
        let pull = self.nodes[spot.node].pulls[spot.blob].as_ref().filter(|pull| !pull.is_whole)?;
        Some((pull, pull.follow.as_ref()?))
    }

    /// Upstream was no use to one, who had asked it at that time: to those who wait it is a failure, if they waited for
    /// that one alone.
    pub(super) fn watch_failure(&mut self, spot: Spot, asked: Duration) {
        for node in (0..self.nodes.len()).filter(|node| *node != spot.node) {
            let other = Spot { node, ..spot };
            let Some((pull, follow)) = self.missing(other) else { continue };
            let waits = !matches!(follow.turn(), Turn::Upstream { .. });
            if !self.is_near(spot.node, node) || asked < pull.failed || asked < pull.last_byte {
                continue;
            }
            let now = self.now;
            let Some(pull) = &mut self.nodes[node].pulls[spot.blob] else { continue };
            pull.failed = now;
            pull.failures = if waits { pull.failures + 1 } else { 0 };
            self.failures = self.failures.max(pull.failures);
        }
        if let Some(pull) = &mut self.nodes[spot.node].pulls[spot.blob] {
            pull.failures = 0;
        }
    }

    /// A reader was sent to one that has nothing of a blob: it costs one round trip, and nobody is sent there again.
    pub(super) fn watch_absence(&mut self, reader: Spot, sender: usize) {
        let before = self.absences.insert((reader, sender), self.now);
        if let Some(before) = before.filter(|before| self.now - *before < BELIEVED) {
            self.complain(&format!("{reader:?} was at {sender} in vain before, at {before:?}"));
        }
    }
}
