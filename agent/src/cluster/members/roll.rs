//! The roll: everybody that is up, asked for page by page.

use std::time::Duration;

use rand::RngExt as _;
use rand::seq::IteratorRandom as _;

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
const RARELY: Duration = Duration::from_secs(30);
/// More than fit into any datagram that we send.
const ENTRIES_MAX: usize = 64;

/// Where this node is in its reading of the roll.
#[derive(Debug, Default)]
pub(super) struct Roll {
    /// The node that the last page ended with.
    after: [u8; 16],
    /// How long to wait for the next page, or before it.
    wait: Duration,
    /// Where the page begins that was asked for last.
    asked: [u8; 16],
    /// The one [`Task::Roll`] that counts, and when it is due.
    turn: u32,
    due: Duration,
}

impl Members {
    /// The first member has been found: reads the roll from the beginning.
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

    /// Asks anybody for the next page.
    pub(super) fn ask_roll(&mut self, now: Duration, turn: u32) {
        if turn != self.roll.turn {
            return;
        }
        let Some(to) = self.swim.iter_members().choose(&mut self.rng).map(|member| member.id().socket()) else {
            return;
        };
        self.roll.asked = self.roll.after;
        self.send(to, &Packet::Roll { from: self.me.clone(), after: self.roll.asked });
        // Should no page come, or one without news.
        let wait = self.roll.wait.mul_f64(self.rng.random_range(0.75..1.25));
        self.roll_in(now, wait);
        self.roll.wait = (self.roll.wait * 2).min(RARELY);
    }

    /// Somebody asks us.
    pub(super) fn answer_roll(&mut self, from: &Identity, after: [u8; 16]) {
        if !self.known.is_up(from) {
            // First it has to join.
            if !self.is_outlived(from) {
                self.send(from.socket(), &Packet::Here(self.me.clone()));
            }
            return;
        }
        let after = u128::from_be_bytes(after);
        let distance = |node: NodeId| u128::from_be_bytes(*node.as_bytes()).wrapping_sub(after).wrapping_sub(1);
        let others = self.swim.iter_members().filter(|member| member.id().node() != from.node());
        let mut nearest: Vec<(u128, &foca::Member<Identity>)> =
            others.map(|member| (distance(member.id().node()), member)).collect();
        if nearest.len() > ENTRIES_MAX {
            nearest.select_nth_unstable_by_key(ENTRIES_MAX, |(distance, _)| *distance);
            nearest.truncate(ENTRIES_MAX);
        }
        nearest.sort_unstable_by_key(|(distance, _)| *distance);
        let entries = nearest
            .into_iter()
            .map(|(_, member)| Entry { member: member.clone(), settled: self.known.is_settled(member.id().node()) });
        let page = Page::fit(self.me.clone(), self.settled, entries, self.packet.get());
        self.send(from.socket(), &Packet::Page(page));
    }

    /// What was asked for.
    pub(super) fn read_page(&mut self, now: Duration, page: Page) {
        // What the dead say is out of date.
        if !self.known.is_up(&page.from) || page.entries.len() > ENTRIES_MAX {
            return;
        }
        let Page { from, settled, mut entries } = page;
        entries.retain(|entry| entry.member.id().node() != self.me.node());
        self.doubt_the_missing(now, &from, settled, &entries);
        if let Some(last) = entries.last() {
            self.roll.after = *last.member.id().node().as_bytes();
        }
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
    fn doubt_the_missing(&mut self, now: Duration, from: &Identity, settled: bool, entries: &[Entry]) {
        let Some(last) = entries.last().filter(|_| settled) else { return };
        let (first, last) = (NodeId::new(self.roll.asked), last.member.id().node());
        let mut named: Vec<NodeId> = entries.iter().map(|entry| entry.member.id().node()).collect();
        named.push(from.node());
        named.sort_unstable();
        let missing: Vec<NodeId> =
            self.known.settled_between(first, last).filter(|node| named.binary_search(node).is_err()).collect();
        for node in missing {
            self.suspect(now, node);
        }
    }

    fn roll_in(&mut self, now: Duration, wait: Duration) {
        self.roll.turn = self.roll.turn.wrapping_add(1);
        self.roll.due = now + wait;
        self.agenda.add(self.roll.due, Task::Roll { turn: self.roll.turn });
    }
}
