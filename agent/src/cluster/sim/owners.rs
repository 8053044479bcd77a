//! Asks, reports, and what owners say to them.

use std::time::Duration;

use rand::RngExt as _;

use crate::cluster::chain::Lease;
use crate::cluster::directory::{Ask, AskId, Directory, Effect, Report, Verdict};
use crate::image::NodeId;

use super::events::{Event, Spot};
use super::links::seconds;
use super::node::Life;
use super::world::World;

/// About what a message costs on the wire, with everything around it, in bytes.
const ASK_BYTES: u64 = 500;
const REPORT_BYTES: u64 = 350;
/// What lies at the least in the queue of a full link, in bytes, and when what was lost there is sent again.
const QUEUED: u64 = 64 << 10;
const SENT_AGAIN: Duration = Duration::from_millis(200);
/// Who doesn't answer is waited for so long.
const CALL_FAILS: Duration = Duration::from_millis(700);

impl World {
    pub(super) fn is_near(&self, from: usize, to: usize) -> bool {
        self.nodes[from].is_up() && self.nodes[to].is_up() && self.nodes[from].part == self.nodes[to].part
    }

    fn node_of(&self, id: NodeId) -> usize {
        self.by_id[&id]
    }

    /// How long until a small message is there: none to the node itself.
    pub(super) fn delay(&self, from: usize, to: usize) -> Duration {
        if from == to { Duration::from_micros(1) } else { self.cluster.delay }
    }

    pub(super) fn count_message(&mut self, bytes: u64) {
        self.messages += 1;
        self.message_bytes += bytes;
        if self.rests_since.is_some_and(|since| self.now >= since) {
            self.messages_at_rest += 1;
        }
    }

    /// How long until a small message is there that is sent now.
    pub(super) fn way(&mut self, from: usize, to: usize) -> Duration {
        let mut way = self.delay(from, to);
        if from == to || self.cluster.queue.is_zero() {
            return way;
        }
        let (up, down) = (&self.links[from], &self.downs[to]);
        let queue = |rate| self.cluster.queue.max(seconds(QUEUED, rate));
        let waits_up = if up.is_busy { queue(up.rate) } else { Duration::ZERO };
        let waits_down = down.free.saturating_sub(self.now).min(queue(down.rate));
        way += waits_up + waits_down;
        for waits in [waits_up, waits_down] {
            if !waits.is_zero() && self.rng.random_bool(self.cluster.lost) {
                way += SENT_AGAIN;
            }
        }
        let arrives = self.said.entry((from, to)).or_default();
        *arrives = (self.now + way).max(*arrives);
        *arrives - self.now
    }

    /// A call begins; its number is for [`Event::Called`].
    fn calls(&mut self, from: usize, to: usize) -> u64 {
        let asked = self.nodes[to].id;
        if from == to { 0 } else { self.nodes[from].delays.asked(self.now, asked) }
    }

    pub(super) fn send_ask(&mut self, from: Spot, owner: NodeId, number: u64, ask: Box<Ask>) {
        let owner = self.node_of(owner);
        self.asks += 1;
        self.count_message(ASK_BYTES);
        let call = self.calls(from.node, owner);
        if self.is_near(from.node, owner) {
            let at = self.now + self.way(from.node, owner) + self.nodes[owner].lateness;
            self.queue.push(at, Event::Asked { owner, from, number, ask, call });
        } else if self.nodes[owner].life == Life::Killed && self.nodes[from.node].part == self.nodes[owner].part {
            let at = self.now + self.cluster.delay * 2;
            self.queue.push(at, Event::Answered { to: from, number, answered: None });
            self.queue.push(at, Event::Called { node: from.node, call, has_answered: false });
        } else {
            self.queue.push(self.now + CALL_FAILS, Event::Called { node: from.node, call, has_answered: false });
        }
    }

    pub(super) fn send_report(&mut self, from: Spot, owner: NodeId, report: Box<Report>) {
        let owner = self.node_of(owner);
        self.count_message(REPORT_BYTES);
        let call = self.calls(from.node, owner);
        if self.is_near(from.node, owner) {
            let at = self.now + self.way(from.node, owner) + self.nodes[owner].lateness;
            self.queue.push(at, Event::Reported { owner, from, report, call });
            return;
        }
        // Refused, or given up for lost after a while.
        let refused = self.nodes[owner].life == Life::Killed;
        let at = self.now + if refused { self.cluster.delay * 2 } else { CALL_FAILS };
        self.queue.push(at, Event::Called { node: from.node, call, has_answered: false });
        if let Some(lease) = report.lease {
            self.queue.push(at, Event::Judged { to: from, owner, lease, verdict: None });
        }
    }

    pub(super) fn asked(&mut self, owner: usize, from: Spot, number: u64, ask: &Ask, call: u64) {
        if !self.nodes[owner].is_up() {
            return;
        }
        let (now, asker) = (self.now, self.nodes[from.node].id);
        self.begin_directory(owner);
        let Some(directory) = &mut self.nodes[owner].directory else { return };
        let effects = directory.ask(now, &mut self.rng, AskId(number), asker, ask);
        for effect in effects {
            if let Effect::Answer { answered, .. } = effect {
                self.count_message(ASK_BYTES / 2);
                if self.is_near(owner, from.node) {
                    let at = now + self.way(owner, from.node);
                    self.queue.push(at, Event::Called { node: from.node, call, has_answered: true });
                    self.queue.push(at, Event::Answered { to: from, number, answered: Some(Box::new(answered)) });
                }
            }
        }
        self.tick_owner_later(owner);
    }

    pub(super) fn reported_to(&mut self, owner: usize, from: Spot, report: &Report, call: u64) {
        if !self.nodes[owner].is_up() {
            return;
        }
        let (now, reporter) = (self.now, self.nodes[from.node].id);
        self.begin_directory(owner);
        let Some(directory) = &mut self.nodes[owner].directory else { return };
        let verdict = directory.report(now, reporter, report);
        self.count_message(REPORT_BYTES / 5);
        if self.is_near(owner, from.node) {
            let at = now + self.way(owner, from.node);
            self.queue.push(at, Event::Called { node: from.node, call, has_answered: true });
            if let Some(lease) = report.lease {
                self.queue.push(at, Event::Judged { to: from, owner, lease, verdict: Some(verdict) });
            }
        }
        self.tick_owner_later(owner);
    }

    pub(super) fn answered(
        &mut self,
        to: Spot,
        number: u64,
        answered: Option<Box<crate::cluster::directory::Answered>>,
    ) {
        let now = self.now;
        tracing::trace!("{now:?} {to:?} answered {answered:?}");
        self.with_follow(to, |follow| match answered {
            Some(answered) => follow.answered(now, number, *answered),
            None => follow.unanswered(now, number),
        });
    }

    pub(super) fn judged(&mut self, to: Spot, owner: usize, lease: Lease, verdict: Option<Verdict>) {
        let (now, owner) = (self.now, self.nodes[owner].id);
        tracing::trace!("{now:?} {to:?} judged {verdict:?}");
        self.with_follow(to, |follow| match verdict {
            Some(verdict) => follow.reported(now, lease, verdict),
            None => follow.unreported(now, owner, lease),
        });
    }

    pub(super) fn tick_owner(&mut self, owner: usize) {
        let now = self.now;
        if self.nodes[owner].owner_tick.take_if(|at| *at <= now).is_none() || !self.nodes[owner].is_up() {
            return;
        }
        if let Some(directory) = &mut self.nodes[owner].directory {
            directory.tick(now, &mut self.rng);
        }
        self.tick_owner_later(owner);
    }

    fn tick_owner_later(&mut self, owner: usize) {
        let node = &mut self.nodes[owner];
        let Some(directory) = &node.directory else { return };
        let at = directory.next_deadline().max(self.now);
        if node.owner_tick.is_none_or(|before| at < before) {
            node.owner_tick = Some(at);
            self.queue.push(at, Event::TickOwner { node: owner });
        }
    }

    pub(super) fn begin_directory(&mut self, owner: usize) {
        let node = &mut self.nodes[owner];
        let run = 0x1000_0000_0000_0000 + owner as u64;
        node.directory.get_or_insert_with(|| Directory::new(node.id, node.ring.clone(), run));
    }
}
