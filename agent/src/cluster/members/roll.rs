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
    /// The one [`Task::Roll`] that counts.
    turn: u32,
}

impl Members {
    /// The first member has been found: reads the roll from the beginning.
    pub(super) fn begin_roll(&mut self, now: Duration) {
        self.roll.wait = SOON;
        self.roll_in(now, AT_ONCE);
    }

    /// Asks anybody for the next page.
    pub(super) fn ask_roll(&mut self, now: Duration, turn: u32) {
        if turn != self.roll.turn {
            return;
        }
        let Some(to) = self.swim.iter_members().choose(&mut self.rng).map(|member| member.id().socket()) else {
            return;
        };
        self.send(to, &Packet::Roll { from: self.me.clone(), after: self.roll.after });
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
        let total = page.entries.len();
        let mut news = 0;
        let mut settled = Vec::new();
        let mut members = Vec::new();
        if page.settled {
            settled.push(page.from);
        }
        if let Some(last) = page.entries.last() {
            self.roll.after = *last.member.id().node().as_bytes();
        }
        for Entry { member, settled: is_settled } in page.entries {
            let identity = member.id();
            if identity.node() == self.me.node() {
                continue;
            }
            if is_settled {
                settled.push(identity.clone());
            }
            news += usize::from(!self.known.is_up(identity));
            members.push(member);
        }
        let before = self.known.generation();
        // They have been told by gossip, or will be: only who missed it has to be told.
        let _ = self.swim(now, |swim, out| swim.apply_many(members.into_iter(), false, out));
        for identity in settled {
            if self.known.is_up(&identity) {
                self.known.settle(identity.node(), identity.run().start);
            }
        }
        if self.known.generation() != before {
            self.roll.wait = SOON;
            self.roll_in(now, if news * 2 >= total.max(1) { AT_ONCE } else { SOON });
        }
    }

    fn roll_in(&mut self, now: Duration, wait: Duration) {
        self.roll.turn = self.roll.turn.wrapping_add(1);
        self.agenda.add(now + wait, Task::Roll { turn: self.roll.turn });
    }
}
