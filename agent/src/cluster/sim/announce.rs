//! What nodes have whole, as they tell owners of it besides the reports of their pulls.

use std::time::Duration;

use rand::RngExt as _;

use crate::cluster::Bucket;
use crate::cluster::directory::{Holding, Shelf};
use crate::image::NodeId;

use super::events::{Event, Spot};
use super::world::World;

/// What comes within it is told together; and at most so long after a change of owners all of it is told.
const BATCH: Duration = Duration::from_millis(100);
const JITTER: Duration = Duration::from_secs(1);
/// After a call that failed.
const AGAIN: Duration = Duration::from_secs(5);
const ANNOUNCE_BYTES: u64 = 300;

impl World {
    /// A node has a blob, and is to tell its owners.
    pub(super) fn announces(&mut self, spot: Spot) {
        for owner in self.nodes[spot.node].ring.owners_of(&Self::key(spot.blob).digest).iter() {
            self.queue.push(self.now + BATCH, Event::ToAnnounce { from: spot, owner });
        }
    }

    /// This owner is a new one: a node tells it what it has, if it has it.
    pub(super) fn announces_later(&mut self, spot: Spot, owner: NodeId) {
        if self.has_whole(spot) {
            let at = self.now + JITTER.mul_f64(self.rng.random());
            self.queue.push(at, Event::ToAnnounce { from: spot, owner });
        }
    }

    pub(super) fn announces_now(&mut self, from: Spot, owner: NodeId) {
        let digest = Self::key(from.blob).digest;
        let is_owner = self.nodes[from.node].ring.owners_of(&digest).contains(owner);
        if !is_owner || !self.nodes[from.node].is_up() || !self.has_whole(from) {
            return;
        }
        let number = self.by_id[&owner];
        self.count_message(ANNOUNCE_BYTES);
        if self.is_near(from.node, number) {
            let at = self.now + self.way(from.node, number);
            self.queue.push(at, Event::Announced { from, owner: number });
        } else {
            self.announces_again(from, owner);
        }
    }

    pub(super) fn announced(&mut self, from: Spot, owner: usize) {
        if !self.nodes[owner].is_up() {
            return;
        }
        let bucket = Bucket::of(&Self::key(from.blob).digest);
        let blobs = (0..self.cluster.blobs.len()).filter(|blob| self.has_whole(Spot { node: from.node, blob: *blob }));
        let digests = blobs.map(|blob| Self::key(blob).digest).filter(|digest| Bucket::of(digest) == bucket);
        let added = digests.map(|digest| Holding { digest, registries: Vec::new() }).collect();
        let shelf = Shelf { bucket, generation: 1, hash: 0, all: true, added, dropped: Vec::new() };
        let (now, node) = (self.now, self.nodes[from.node].id);
        self.begin_directory(owner);
        let Some(directory) = &mut self.nodes[owner].directory else { return };
        let announced = directory.announce(now, node, vec![shelf]);
        if !announced.not_owned.is_empty() {
            // It will know better in a while, or the sender does.
            self.announces_again(from, self.nodes[owner].id);
        }
    }

    fn announces_again(&mut self, from: Spot, owner: NodeId) {
        let at = self.now + AGAIN + JITTER.mul_f64(self.rng.random());
        self.queue.push(at, Event::ToAnnounce { from, owner });
    }

    pub(super) fn has_whole(&self, spot: Spot) -> bool {
        self.nodes[spot.node].pulls[spot.blob].as_ref().is_some_and(|blob| blob.is_whole)
    }
}
