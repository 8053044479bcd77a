//! What goes wrong.

use rand::RngExt as _;

use crate::cluster::chain::Parting;

use super::events::{Event, Spot};
use super::node::Life;
use super::plan::Fault;
use super::world::World;

impl World {
    pub(super) fn goes_wrong(&mut self, fault: Fault) {
        let now = self.now;
        match fault {
            Fault::Dark(node) => self.dies(node, Life::Dark),
            Fault::Killed(node) => self.dies(node, Life::Killed),
            Fault::OwnerDark => {
                if let Some(owner) = self.owner() {
                    self.dies(owner, Life::Dark);
                }
            }
            Fault::OwnerSlow(late) => {
                if let Some(owner) = self.owner() {
                    self.nodes[owner].lateness = late;
                }
            }
            Fault::Slow(node, part) => {
                let node = self.victim(node);
                self.links[node].rate *= part;
                self.downs[node].rate *= part;
                self.nodes[node].is_healthy = false;
            }
            Fault::SlowUpstream(node, part) => {
                let node = self.victim(node);
                self.nodes[node].upstream_part = Some(part);
                let pace = Some(part * self.cluster.link);
                let upstream = self.upstream();
                for stream in self.streams.iter_mut().filter(|s| s.sender == upstream && s.reader.node == node) {
                    stream.pace = pace;
                }
            }
            Fault::UpstreamGone => {
                self.upstream_answers = false;
                let upstream = self.upstream();
                for number in 0..self.streams.len() {
                    let stream = &self.streams[number];
                    if stream.sender == upstream && stream.is_open && !stream.is_ended {
                        self.upstream_broke(number);
                    }
                }
            }
            Fault::UpstreamBack => self.upstream_answers = true,
            Fault::Parted(parts) => {
                for node in 0..self.nodes.len() {
                    self.nodes[node].part = self.rng.random_range(0..parts);
                }
                // Each part by itself.
                self.needed += (parts as u64 - 1) * self.cluster.blobs.iter().sum::<u64>();
                self.is_to_be_noticed();
            }
            Fault::Healed => {
                for node in &mut self.nodes {
                    node.part = 0;
                }
                // What was under way is sent again by TCP.
                for number in 0..self.streams.len() {
                    self.wake(number);
                }
                self.is_to_be_noticed();
            }
            Fault::Leaves(node, back) => {
                let node = self.victim(node);
                if self.nodes[node].done.is_none() && self.nodes[node].is_up() && self.nodes[node].began.is_some() {
                    self.leaves(node);
                    self.queue.push(now + back, Event::Again { node });
                }
            }
            Fault::Comes(node) => {
                if self.nodes[node].life == Life::Away {
                    self.nodes[node].life = Life::Up;
                    self.sees_others(node);
                    self.queue.push(now, Event::Begin { node });
                }
            }
            Fault::Forgets => {
                let has_all = |node: &&usize| self.nodes[**node].is_up() && self.nodes[**node].done.is_some();
                if let Some(node) = (0..self.nodes.len()).collect::<Vec<_>>().iter().find(has_all) {
                    self.forgets(*node);
                }
            }
        }
    }

    fn victim(&self, node: usize) -> usize {
        if node == Fault::OWNER {
            return self.owner().unwrap_or(0);
        }
        if node != Fault::HOLDER {
            return node.min(self.nodes.len() - 1);
        }
        let key = Self::key(0);
        let leases =
            self.nodes.iter().filter_map(|node| node.directory.as_ref()).flat_map(|directory| directory.leases(&key));
        leases.map(|(node, ..)| self.by_id[&node]).next().unwrap_or(0)
    }

    fn owner(&self) -> Option<usize> {
        let ring = &self.nodes.iter().find(|node| node.is_up())?.ring;
        ring.owners_of(&Self::key(0).digest).first.map(|owner| self.by_id[&owner])
    }

    fn dies(&mut self, node: usize, how: Life) {
        let node = self.victim(node);
        if !self.nodes[node].is_up() {
            return;
        }
        self.is_lost(node);
        self.nodes[node].life = how;
        self.nodes[node].is_healthy = false;
        self.is_graph_new = true;
        if self.nodes[node].done.is_none() {
            self.left -= 1;
        }
        for number in 0..self.streams.len() {
            let stream = &self.streams[number];
            let (sender, reader) = (stream.sender, stream.reader.node);
            if stream.is_closed || stream.is_ended {
                continue;
            }
            if reader == node {
                self.streams[number].is_closed = true;
                if how == Life::Killed || sender == self.upstream() {
                    self.queue.push(self.now + self.cluster.delay, Event::Closed { stream: number });
                }
            } else if sender == node && how == Life::Killed {
                self.queue.push(self.now + self.cluster.delay, Event::Broke { stream: number });
            }
        }
        self.is_to_be_noticed();
    }

    /// A node that has everything loses it, and tells nobody.
    fn forgets(&mut self, node: usize) {
        self.is_lost(node);
        for blob in 0..self.cluster.blobs.len() {
            let Some(pull) = &self.nodes[node].pulls[blob] else { continue };
            for stream in pull.sends.clone() {
                self.part(stream, Parting::Failed);
            }
            self.nodes[node].pulls[blob] = None;
        }
        self.is_graph_new = true;
    }

    fn leaves(&mut self, node: usize) {
        self.is_lost(node);
        self.nodes[node].is_healthy = false;
        for blob in 0..self.cluster.blobs.len() {
            let now = self.now;
            let spot = Spot { node, blob };
            self.with_follow(spot, |follow| follow.leave(now));
            let Some(pull) = &self.nodes[node].pulls[blob] else { continue };
            if pull.is_whole {
                continue;
            }
            for stream in pull.sends.clone() {
                self.part(stream, Parting::Failed);
            }
            self.nodes[node].pulls[blob] = None;
        }
        self.nodes[node].next = 0;
        self.nodes[node].under_way = 0;
        // It begins from nothing, and knows of nobody.
        self.absences.retain(|(reader, _), _| reader.node != node);
    }
}
