//! Who holds what whole.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom as _;

use crate::cluster::chain::Key;
use crate::cluster::{Bucket, Ring};
use crate::image::{Access, Digest, NodeId, Registry, Zone};

use super::words::{Holding, Shelf};

/// How long a shelf stands without being renewed.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// For so long nobody is sent to a holder of which somebody says that it hasn't got it, or sent wrong bytes. It may still have
/// it, as its shelf says: of that it would tell no more as long as nothing changes there.
const ABSENT_FOR: Duration = Duration::from_secs(60);
const WRONG_FOR: Duration = Duration::from_secs(3600);
/// For so long one of which somebody says that it gives little comes after all others.
const SLOW_FOR: Duration = Duration::from_secs(30);
/// The most holders remembered of one digest: a newcomer needs one, of its own zone where there is any.
const MAX_HOLDERS: usize = 256;
/// The most holdings in all; what is beyond isn't known, and costs a second copy.
const MAX_HOLDINGS: usize = 2_000_000;

#[derive(Debug, Default)]
pub(super) struct Shelves {
    shelves: HashMap<(NodeId, Bucket), Known>,
    holders: HashMap<Digest, Vec<Holder>>,
    holdings: usize,
}

#[derive(Debug)]
struct Known {
    generation: u64,
    hash: u64,
    digests: HashSet<Digest>,
    expires: Duration,
}

#[derive(Debug)]
struct Holder {
    node: NodeId,
    /// Empty: anybody may have it.
    registries: Vec<Registry>,
    /// Of one that isn't on a known shelf yet.
    expires: Option<Duration>,
    /// Nobody is sent there until then.
    doubted_until: Duration,
    /// When somebody was sent there last; zero: never. Of one that gives little, a time to come.
    sent_to: Duration,
}

impl Holder {
    fn may_give(&self, key: &Key) -> bool {
        self.registries.is_empty() || (key.access == Access::Authorized && self.registries.contains(&key.registry))
    }
}

/// Who is to make room for `node` in a list that is full: one of the zone that has most, if that is more than its own will
/// have. Else a zone whose first comes late would fetch across again and again.
fn spare(ring: &Ring, holders: &[Holder], node: NodeId) -> Option<usize> {
    let zone_of = |node: NodeId| ring.member(node).map(|member| &member.zone);
    let mut zones: HashMap<Option<&Zone>, usize> = HashMap::new();
    for holder in holders {
        *zones.entry(zone_of(holder.node)).or_default() += 1;
    }
    let own = zones.get(&zone_of(node)).copied().unwrap_or_default();
    let (most, count) = zones.into_iter().max_by_key(|(_, count)| *count)?;
    if own + 1 >= count {
        return None;
    }
    holders.iter().rposition(|holder| zone_of(holder.node) == most)
}

impl Shelves {
    /// Takes in what `node` says of a shelf. False: all of it has to be told.
    pub(super) fn told(&mut self, now: Duration, ring: &Ring, node: NodeId, shelf: Shelf) -> bool {
        let place = (node, shelf.bucket);
        let expires = now + LIFE;
        if shelf.all {
            self.clear(place);
            let digests = shelf.added.iter().map(|holding| holding.digest).collect();
            self.shelves.insert(place, Known { generation: shelf.generation, hash: shelf.hash, digests, expires });
        } else {
            let unchanged = shelf.added.is_empty() && shelf.dropped.is_empty();
            let Some(known) = self.shelves.get_mut(&place) else { return false };
            let fits = if unchanged {
                (known.generation, known.hash) == (shelf.generation, shelf.hash)
            } else {
                known.generation.checked_add(1) == Some(shelf.generation)
            };
            if !fits {
                return false;
            }
            known.generation = shelf.generation;
            known.hash = shelf.hash;
            known.expires = expires;
            known.digests.extend(shelf.added.iter().map(|holding| holding.digest));
            for digest in &shelf.dropped {
                known.digests.remove(digest);
            }
        }
        for digest in &shelf.dropped {
            self.drop_holder(node, digest);
        }
        for holding in shelf.added {
            self.add(ring, node, holding, None);
        }
        true
    }

    /// `node` has just become whole; its shelf will say so too, later.
    pub(super) fn became_whole(&mut self, now: Duration, ring: &Ring, node: NodeId, key: &Key) {
        let registries = match key.access {
            Access::Anonymous => Vec::new(),
            Access::Authorized => vec![key.registry.clone()],
        };
        self.add(ring, node, Holding { digest: key.digest, registries }, Some(now + LIFE));
    }

    fn add(&mut self, ring: &Ring, node: NodeId, holding: Holding, expires: Option<Duration>) {
        let holders = self.holders.entry(holding.digest).or_default();
        if let Some(holder) = holders.iter_mut().find(|holder| holder.node == node) {
            // What anybody may have stays so, whoever else gave it; and a shelf's word outlives a report's.
            if !holder.registries.is_empty() && !holding.registries.is_empty() {
                holder.registries.extend(holding.registries);
                holder.registries.sort();
                holder.registries.dedup();
            } else {
                holder.registries.clear();
            }
            holder.expires = holder.expires.and(expires);
            holder.doubted_until = Duration::ZERO;
            return;
        }
        if holders.len() >= MAX_HOLDERS
            && let Some(spare) = spare(ring, holders, node)
        {
            holders.swap_remove(spare);
            self.holdings -= 1;
        }
        if holders.len() < MAX_HOLDERS && self.holdings < MAX_HOLDINGS {
            let (doubted_until, sent_to) = (Duration::ZERO, Duration::ZERO);
            holders.push(Holder { node, registries: holding.registries, expires, doubted_until, sent_to });
            self.holdings += 1;
        }
    }

    /// The nodes that have all of it, and may give it on to who asks by this key: those to whom nobody was sent for longest
    /// first, and of them any. Who had it first would give most of all that others want otherwise.
    pub(super) fn holders(&self, now: Duration, rng: &mut impl Rng, key: &Key) -> Vec<NodeId> {
        let holders = self.holders.get(&key.digest).map_or(&[][..], Vec::as_slice);
        let gives = |holder: &&Holder| holder.may_give(key) && holder.doubted_until <= now;
        let mut holders: Vec<&Holder> = holders.iter().filter(gives).collect();
        holders.shuffle(rng);
        holders.sort_by_key(|holder| holder.sent_to);
        holders.into_iter().map(|holder| holder.node).collect()
    }

    /// Somebody is sent to `node` for it.
    pub(super) fn send_to(&mut self, now: Duration, node: NodeId, digest: &Digest) {
        let holders = self.holders.get_mut(digest).map_or(&mut [][..], Vec::as_mut_slice);
        if let Some(holder) = holders.iter_mut().find(|holder| holder.node == node) {
            holder.sent_to = holder.sent_to.max(now);
        }
    }

    /// `node` gives little of it, somebody says.
    pub(super) fn is_slow(&mut self, now: Duration, node: NodeId, digest: &Digest) {
        self.send_to(now + SLOW_FOR, node, digest);
    }

    /// `node` hasn't got what this key asks for, somebody says. What it has for others it still has.
    pub(super) fn is_absent(&mut self, now: Duration, node: NodeId, key: &Key) {
        self.doubt(node, &key.digest, now + ABSENT_FOR, |holder| holder.may_give(key));
    }

    /// `node` sent wrong bytes, somebody says.
    pub(super) fn is_wrong(&mut self, now: Duration, node: NodeId, digest: &Digest) {
        self.doubt(node, digest, now + WRONG_FOR, |_| true);
    }

    fn doubt(&mut self, node: NodeId, digest: &Digest, until: Duration, whom: impl Fn(&Holder) -> bool) {
        let holders = self.holders.get_mut(digest).map_or(&mut [][..], Vec::as_mut_slice);
        for holder in holders.iter_mut().filter(|holder| holder.node == node && whom(holder)) {
            holder.doubted_until = holder.doubted_until.max(until);
        }
    }

    fn drop_holder(&mut self, node: NodeId, digest: &Digest) {
        let Some(holders) = self.holders.get_mut(digest) else { return };
        let before = holders.len();
        holders.retain(|holder| holder.node != node);
        self.holdings -= before - holders.len();
        if holders.is_empty() {
            self.holders.remove(digest);
        }
    }

    fn clear(&mut self, place: (NodeId, Bucket)) {
        let Some(known) = self.shelves.remove(&place) else { return };
        for digest in &known.digests {
            self.drop_holder(place.0, digest);
        }
    }

    pub(super) fn forget_node(&mut self, node: NodeId) {
        let places: Vec<_> = self.shelves.keys().filter(|(holder, _)| *holder == node).copied().collect();
        for place in places {
            self.clear(place);
        }
        self.retain(|holder| holder.node != node);
    }

    pub(super) fn sweep(&mut self, now: Duration, owned: impl Fn(Bucket) -> bool) {
        let gone = self.shelves.iter().filter(|((_, bucket), known)| known.expires <= now || !owned(*bucket));
        let gone: Vec<_> = gone.map(|(place, _)| *place).collect();
        for place in gone {
            self.clear(place);
        }
        self.retain(|holder| holder.expires.is_none_or(|expires| now < expires));
    }

    fn retain(&mut self, keep: impl Fn(&Holder) -> bool) {
        let mut holdings = 0;
        self.holders.retain(|_, holders| {
            holders.retain(&keep);
            holdings += holders.len();
            !holders.is_empty()
        });
        self.holdings = holdings;
    }

    /// How many holdings are known.
    pub(super) const fn len(&self) -> usize {
        self.holdings
    }
}
