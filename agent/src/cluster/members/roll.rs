//! The roll: what members know of who is up, held against each other.
//!
//! The numbers of nodes fall into 128 ranges. Who calls the roll sends a sum over each; who is asked answers with those
//! of its members that are in ranges which differ, as many as fit into a packet. So it costs next to nothing where both
//! agree, tells a newcomer everybody in as many round trips as there are packets full of members, and finds whom
//! gossip has missed.

use std::time::Duration;

use rand::RngExt as _;
use rand::seq::IteratorRandom as _;

use crate::cluster::mix::{self, mix};
use crate::image::NodeId;

use super::Members;
use super::agenda::Task;
use super::identity::Identity;
use super::packet::{Entry, Packet, Page};

/// After a page that was mostly news.
const AT_ONCE: Duration = Duration::from_millis(20);
/// After a page with some.
const SOON: Duration = Duration::from_millis(250);
/// After somebody has come or gone: gossip may have missed somebody.
const AFTER_A_CHANGE: Duration = Duration::from_secs(4);
/// In the end.
const RARELY: Duration = Duration::from_secs(10);

/// How many ranges the numbers of nodes fall into.
const RANGES: usize = 128;

/// Where this node is in calling the roll.
#[derive(Debug, Default)]
pub(super) struct Roll {
    /// How long to wait for the next page, or before it.
    wait: Duration,
    /// The one [`Task::Roll`] that counts, and when it is due.
    turn: u32,
    due: Duration,
}

impl Members {
    /// The first member has been found.
    pub(super) fn begin_roll(&mut self, now: Duration) {
        self.roll.wait = SOON;
        self.roll_in(now, AT_ONCE);
    }

    /// Somebody has come or gone: sees to it that nobody is missed.
    pub(super) fn roll_soon(&mut self, now: Duration) {
        self.roll.wait = self.roll.wait.min(AFTER_A_CHANGE);
        if self.roll.due > now + AFTER_A_CHANGE {
            let wait = AFTER_A_CHANGE.mul_f64(self.rng.random_range(0.25..1.0));
            self.roll_in(now, wait);
        }
    }

    /// Asks anybody for a page.
    pub(super) fn call_roll(&mut self, now: Duration, turn: u32) {
        if turn != self.roll.turn {
            return;
        }
        let Some(to) = self.swim.iter_members().choose(&mut self.rng).map(|member| member.id().socket()) else {
            return;
        };
        let sums = self.sums().to_bytes();
        self.send(to, &Packet::Roll { from: self.me.clone(), sums: &sums });
        // Should no page come, or one without news.
        let wait = self.roll.wait.mul_f64(self.rng.random_range(0.75..1.25));
        self.roll_in(now, wait);
        self.roll.wait = (self.roll.wait * 2).min(RARELY);
    }

    /// Somebody asks us.
    pub(super) fn answer_roll(&mut self, from: &Identity, sums: &[u8]) {
        if !self.known.is_up(from) {
            // First it has to join.
            if !self.is_outlived(from) {
                self.send(from.socket(), &Packet::Here(self.me.clone()));
            }
            return;
        }
        let differing = self.sums().differing(sums);
        let mut groups: Vec<Vec<Entry>> = (0..RANGES).map(|_| Vec::new()).collect();
        for member in self.swim.iter_members() {
            let node = member.id().node();
            if node != from.node() && differing[range(node)] {
                groups[range(node)].push(Entry { member: member.clone(), settled: self.known.is_settled(node) });
            }
        }
        // From anywhere on: who asks several gets different pages.
        let first = self.rng.random_range(0..RANGES);
        let ranges = (first..RANGES).chain(0..first).filter(|range| differing[*range]);
        let groups = ranges.map(|range| (range, std::mem::take(&mut groups[range])));
        let page = Page::fit(self.me.clone(), self.settled, groups, self.packet.get());
        self.send(from.socket(), &Packet::Page(page));
    }

    /// What was asked for.
    pub(super) fn read_page(&mut self, now: Duration, page: Page) {
        // What the dead say is out of date.
        if !self.known.is_up(&page.from) {
            return;
        }
        self.doubt_the_missing(now, &page);
        let Page { from, settled, mut entries, .. } = page;
        entries.retain(|entry| entry.member.id().node() != self.me.node());
        let total = entries.len();
        let news = entries.iter().filter(|entry| !self.known.is_up(entry.member.id())).count();
        let already = entries.iter().filter(|entry| entry.settled).map(|entry| entry.member.id().clone());
        let already: Vec<Identity> = already.chain(settled.then_some(from)).collect();
        let before = self.known.generation();
        // They have been told by gossip, or will be: only who missed it has to be told.
        let members = entries.into_iter().map(|entry| entry.member);
        let _ = self.swim(now, |swim, out| swim.apply_many(members, false, out));
        for identity in already {
            if self.known.is_up(&identity) {
                self.known.settle(identity.node(), identity.run().start);
            }
        }
        if self.known.generation() != before {
            self.roll.wait = SOON;
            self.roll_in(now, if news * 2 >= total.max(1) { AT_ONCE } else { SOON });
        }
    }

    /// Who should be on a page and isn't may be dead: this node may be the one that gossip missed.
    fn doubt_the_missing(&mut self, now: Duration, page: &Page) {
        if !page.settled || page.covered == [0; _] {
            return;
        }
        let mut named: Vec<NodeId> = page.entries.iter().map(|entry| entry.member.id().node()).collect();
        named.push(page.from.node());
        named.sort_unstable();
        let is_missing = |node: &NodeId| page.covers(range(*node)) && named.binary_search(node).is_err();
        let missing: Vec<NodeId> = self.known.settled().filter(is_missing).collect();
        for node in missing {
            self.suspect(now, node);
        }
    }

    fn roll_in(&mut self, now: Duration, wait: Duration) {
        self.roll.turn = self.roll.turn.wrapping_add(1);
        self.roll.due = now + wait;
        self.agenda.add(self.roll.due, Task::Roll { turn: self.roll.turn });
    }

    /// The sums over everybody, this node included.
    fn sums(&self) -> Sums {
        let mut sums = Sums([0; RANGES]);
        sums.add(self.me.node(), self.me.run().start, self.settled);
        for (node, start, settled) in self.known.up() {
            sums.add(node, start, settled);
        }
        sums
    }
}

/// The range of a node.
const fn range(node: NodeId) -> usize {
    (node.as_bytes()[0] >> 1) as usize
}

/// A sum over the members of each range. Sixteen bits: two that differ are taken for the same once in 65,536 times, and
/// differ elsewhere with the next change.
#[derive(Debug, PartialEq, Eq)]
struct Sums([u16; RANGES]);

impl Sums {
    fn add(&mut self, node: NodeId, start: u64, settled: bool) {
        let hash = mix(mix::node(node) ^ mix(start << 1 | u64::from(settled)));
        let sum = &mut self.0[range(node)];
        // Truncating.
        *sum = sum.wrapping_add(hash as u16);
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|sum| sum.to_be_bytes()).collect()
    }

    /// Which ranges aren't the same in the bytes of other sums. What is missing there differs.
    fn differing(&self, bytes: &[u8]) -> [bool; RANGES] {
        let (theirs, _) = bytes.as_chunks::<2>();
        std::array::from_fn(|range| theirs.get(range).is_none_or(|sum| u16::from_be_bytes(*sum) != self.0[range]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_differ_in_the_ranges_where_members_do_and_nowhere_else() {
        let nodes = |count: u8| (0..count).map(|n| NodeId::new([n.wrapping_mul(37); 16]));
        let (mut mine, mut theirs) = (Sums([0; RANGES]), Sums([0; RANGES]));
        for node in nodes(40) {
            mine.add(node, 1, true);
        }
        let mut reversed: Vec<NodeId> = nodes(40).collect();
        reversed.reverse();
        for node in reversed {
            theirs.add(node, 1, true);
        }
        assert_eq!(mine, theirs, "the order makes no difference");

        let other = NodeId::new([0x81; 16]);
        mine.add(other, 1, true);
        theirs.add(other, 1, false);
        let differing = mine.differing(&theirs.to_bytes());
        assert_eq!((0..RANGES).filter(|range| differing[*range]).collect::<Vec<_>>(), [range(other)]);
        assert!(mine.differing(b"").iter().all(|differs| *differs));
    }
}
