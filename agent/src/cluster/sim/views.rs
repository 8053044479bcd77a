//! Who sees whom as a member, and learns when that somebody has come or gone: all at once, or each of each other at a time
//! of its own. Between the first and the last of them, nodes don't agree on who owns what.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;

use crate::cluster::{Member, Ring};
use crate::image::NodeId;

use super::events::{Event, Spot};
use super::world::World;

impl World {
    /// Who can reach whom has changed: it will be noticed.
    pub(super) fn is_to_be_noticed(&mut self) {
        let after = self.now + self.cluster.noticed_after;
        let within = self.cluster.noticed_within;
        self.changes_until = self.changes_until.max(after + within);
        if within.is_zero() {
            self.queue.push(after, Event::Noticed);
            return;
        }
        for node in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                if self.sees[node][other] != self.is_near(node, other) {
                    // Of itself a node knows first.
                    let at = after + if node == other { Duration::ZERO } else { within.mul_f64(self.rng.random()) };
                    self.queue.push(at, Event::Sees { node, other });
                }
            }
        }
    }

    /// Everybody sees who can be reached.
    pub(super) fn notice(&mut self) {
        let parts = self.nodes.iter().map(|node| node.part).max().unwrap_or(0);
        for part in 0..=parts {
            let near: Vec<usize> = (0..self.nodes.len())
                .filter(|node| self.nodes[*node].is_up() && self.nodes[*node].part == part)
                .collect();
            let ring = self.ring_of(near.iter().copied());
            for number in near {
                self.has_ring(number, &ring);
            }
        }
        if !self.cluster.noticed_within.is_zero() {
            let nodes = 0..self.nodes.len();
            self.sees =
                nodes.clone().map(|node| nodes.clone().map(|other| self.is_near(node, other)).collect()).collect();
        }
    }

    /// A node sees whether another, or itself, is there now.
    pub(super) fn looks(&mut self, node: usize, other: usize) {
        let is_there = self.is_near(node, other);
        if !self.nodes[node].is_up() || std::mem::replace(&mut self.sees[node][other], is_there) == is_there {
            return;
        }
        let ring = self.ring_of((0..self.nodes.len()).filter(|other| self.sees[node][*other]));
        self.has_ring(node, &ring);
    }

    /// A node that has just come sees all others, and isn't an owner yet.
    pub(super) fn sees_others(&mut self, node: usize) {
        let others: Vec<usize> =
            (0..self.nodes.len()).filter(|other| *other != node && self.is_near(node, *other)).collect();
        if !self.cluster.noticed_within.is_zero() {
            self.sees[node] = (0..self.nodes.len()).map(|other| others.contains(&other)).collect();
        }
        let ring = self.ring_of(others.into_iter());
        self.has_ring(node, &ring);
        self.is_to_be_noticed();
    }

    fn ring_of(&self, members: impl Iterator<Item = usize>) -> Arc<Ring> {
        let members = members.map(|number| Member {
            node: self.nodes[number].id,
            addr: std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
            zone: self.nodes[number].zone.clone(),
            start: 1,
            settled: true,
        });
        Arc::new(Ring::new(NodeId::new([0; 16]), members))
    }

    fn has_ring(&mut self, number: usize, ring: &Arc<Ring>) {
        let node = &mut self.nodes[number];
        let before = std::mem::replace(&mut node.ring, ring.clone());
        if let Some(directory) = &mut node.directory {
            directory.ring_changed(self.now, &mut self.rng, ring.clone());
        }
        for blob in 0..self.cluster.blobs.len() {
            let (now, spot) = (self.now, Spot { node: number, blob });
            let digest = Self::key(blob).digest;
            let (before, owners) = (before.owners_of(&digest), ring.owners_of(&digest));
            self.with_follow(spot, |follow| follow.owners_changed(now, owners));
            for owner in owners.iter().filter(|owner| !before.contains(*owner)) {
                self.announces_later(spot, owner);
            }
        }
    }
}
