//! Who holds copies of images that others run.
//!
//! Each node that runs an image tells those members that rank first for it. Whoever is told knows all that run it, and
//! finds by the same ranking whether it is among those that make up what is missing. So nobody decides, and nobody has to
//! be told of a decision.

use std::collections::HashMap;
use std::time::Duration;

use super::Ring;
use crate::image::{Digest, ImageName, MediaType, NodeId};

/// How long a node's word holds.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// The most images that others want here.
const MOST_IMAGES: usize = 4096;
/// The most nodes that are remembered as running one.
const MOST_RUNNING: usize = 64;
/// The most copies that anybody may want.
const MOST_COPIES: u32 = 16;

/// An image that runs, and is wanted on several nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedCopies {
    /// Its name in full.
    pub image: ImageName,
    /// The index or manifest that it means there.
    pub target: Digest,
    /// That one's type.
    pub media_type: MediaType,
    /// On how many nodes it is to be whole, those that run it included.
    pub copies: u32,
}

/// What others want to be here.
#[derive(Debug, Default)]
pub struct Copies(HashMap<Digest, Known>);

#[derive(Debug)]
struct Known {
    wanted: WantedCopies,
    /// Who runs it, and until when that holds.
    running: HashMap<NodeId, Duration>,
}

impl Copies {
    /// `from` runs these.
    pub fn told(&mut self, now: Duration, from: NodeId, images: Vec<WantedCopies>) {
        self.sweep(now);
        for wanted in images {
            if self.0.len() >= MOST_IMAGES && !self.0.contains_key(&wanted.target) {
                continue;
            }
            let known = self.0.entry(wanted.target).or_insert_with(|| {
                let (wanted, running) = (wanted.clone(), HashMap::new());
                Known { wanted, running }
            });
            known.wanted = WantedCopies { copies: wanted.copies.min(MOST_COPIES), ..wanted };
            if known.running.len() < MOST_RUNNING || known.running.contains_key(&from) {
                known.running.insert(from, now + LIFE);
            }
        }
    }

    /// What this node is to hold, in the order of digests.
    pub fn here(&mut self, now: Duration, ring: &Ring) -> Vec<WantedCopies> {
        self.sweep(now);
        let is_here = |known: &&Known| {
            let missing = (known.wanted.copies as usize).saturating_sub(known.running.len());
            let others =
                ranked(ring, &known.wanted.target).into_iter().filter(|node| !known.running.contains_key(node));
            others.take(missing).any(|node| node == ring.me())
        };
        let mut here: Vec<WantedCopies> = self.0.values().filter(is_here).map(|known| known.wanted.clone()).collect();
        here.sort_by_key(|wanted| wanted.target);
        here
    }

    fn sweep(&mut self, now: Duration) {
        self.0.retain(|_, known| {
            known.running.retain(|_, until| *until > now);
            !known.running.is_empty()
        });
    }
}

/// Whom a node that runs an image tells of it, besides itself: whoever may have to hold a copy.
#[must_use]
pub fn may_hold(ring: &Ring, target: &Digest, copies: u32) -> Vec<NodeId> {
    let ranked = ranked(ring, target).into_iter().take(copies.min(MOST_COPIES) as usize);
    ranked.filter(|node| *node != ring.me()).collect()
}

/// The settled members, as they rank for a digest.
fn ranked(ring: &Ring, target: &Digest) -> Vec<NodeId> {
    let bytes: &[u8] = match target {
        Digest::Sha256(hash) => hash.as_slice(),
        Digest::Sha512(hash) => hash.as_slice(),
    };
    let seed = bytes.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    ring.by_rank(seed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::Member;
    use crate::image::Zone;

    fn node(n: u8) -> NodeId {
        NodeId::new([n; 16])
    }

    fn ring(me: u8, count: u8) -> Ring {
        let member = |n| Member {
            node: node(n),
            addr: ([127, 0, 0, n], 1).into(),
            zone: Zone::default(),
            start: 1,
            settled: true,
        };
        Ring::new(node(me), (0..count).map(member))
    }

    fn wanted(name: &str, copies: u32) -> WantedCopies {
        let (image, target) = (name.parse().unwrap(), Digest::of(name.as_bytes()));
        WantedCopies { image, target, media_type: MediaType::octet_stream(), copies }
    }

    /// How many nodes have the image when each does what it is told: those that run it, and those that hold a copy.
    fn held(count: u8, running: &[u8], copies: u32, now: Duration) -> (usize, usize) {
        let wanted = wanted("r.test/app", copies);
        let mut others: Vec<Copies> = (0..count).map(|_| Copies::default()).collect();
        for from in running {
            others[usize::from(*from)].told(Duration::ZERO, node(*from), vec![wanted.clone()]);
            for to in may_hold(&ring(*from, count), &wanted.target, copies) {
                others[usize::from(to.as_bytes()[0])].told(Duration::ZERO, node(*from), vec![wanted.clone()]);
            }
        }
        let others = others.iter_mut().zip(0..count);
        let holding = others.filter_map(|(copies, n)| (!copies.here(now, &ring(n, count)).is_empty()).then_some(n));
        let holding: Vec<u8> = holding.collect();
        (running.len() + holding.len(), holding.iter().filter(|n| running.contains(n)).count())
    }

    proptest! {
        #[test]
        fn as_many_as_are_wanted_have_it(
            count in 1u8..40, copies in 0u32..6, running in prop::collection::btree_set(0u8..40, 1..8),
        ) {
            let running: Vec<u8> = running.into_iter().filter(|n| *n < count).collect();
            prop_assume!(!running.is_empty());
            let (all, twice) = held(count, &running, copies, Duration::from_secs(1));
            prop_assert_eq!(all, running.len().max((copies as usize).min(usize::from(count))));
            prop_assert_eq!(twice, 0);
        }
    }

    #[test]
    fn what_nobody_runs_any_more_is_held_no_more() {
        assert_eq!(held(5, &[0], 3, LIFE - Duration::from_secs(1)).0, 3);
        assert_eq!(held(5, &[0], 3, LIFE).0, 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut copies = Copies::default();
        let many = (0..MOST_IMAGES + 10).map(|n| wanted(&format!("r.test/app{n}"), 99)).collect();
        copies.told(Duration::ZERO, node(1), many);
        assert_eq!(copies.0.len(), MOST_IMAGES);
        assert!(copies.0.values().all(|known| known.wanted.copies == MOST_COPIES));
    }
}
