//! Who owns which bucket of digests.

use std::fmt;

use crate::image::{Digest, NodeId};

use super::Member;
use super::mix::{self, mix};

/// One of the 128 parts that all digests (and all other hashed keys) fall into.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(u8);

impl Bucket {
    /// How many there are.
    pub const COUNT: usize = 128;

    /// The bucket of that number, if there is one.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// A blob's.
    #[must_use]
    pub const fn of(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(hash) => Self(hash[0] >> 1),
            Digest::Sha512(hash) => Self(hash[0] >> 1),
        }
    }

    /// That of a key which isn't a blob, by its SHA-256.
    #[must_use]
    pub const fn of_hash(hash: &[u8; 32]) -> Self {
        Self(hash[0] >> 1)
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0u8..).take(Self::COUNT).map(Self)
    }

    /// Its number, below [`Self::COUNT`].
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({})", self.0)
    }
}

/// The members that own a bucket: at most two, never the same twice, ranked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owners {
    /// The one to ask. `None` while no member is settled.
    pub first: Option<NodeId>,
    /// The one to ask when the first fails. `None` in a cluster of one.
    pub second: Option<NodeId>,
}

impl Owners {
    /// Both, by rank.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        [self.first, self.second].into_iter().flatten()
    }

    /// Is `node` one of them?
    #[must_use]
    pub fn contains(self, node: NodeId) -> bool {
        self.first == Some(node) || self.second == Some(node)
    }

    /// The other one, as seen from one of them.
    #[must_use]
    pub fn beside(self, node: NodeId) -> Option<NodeId> {
        self.iter().find(|owner| *owner != node)
    }
}

/// The members as this node sees them at one moment, and who of them owns what. Immutable: a change makes a new one.
///
/// Owners are chosen among the members that are settled, by rendezvous hashing: each member has a score for each
/// bucket, and the two highest own it. So every node that sees the same settled members names the same owners, and a
/// member that goes takes nothing along but its own buckets.
#[derive(Debug, Clone)]
pub struct Ring {
    me: NodeId,
    /// Ordered by node.
    members: Box<[Member]>,
    owners: Box<[Owners; Bucket::COUNT]>,
}

impl Ring {
    /// The ring of these members, as seen from `me`. Of members of the same node the one with the latest start counts.
    #[must_use]
    pub fn new(me: NodeId, members: impl IntoIterator<Item = Member>) -> Self {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort_by(|a, b| (a.node, b.start).cmp(&(b.node, a.start)));
        members.dedup_by_key(|member| member.node);
        let seeds: Vec<(NodeId, u64)> = members
            .iter()
            .filter(|member| member.settled)
            .map(|member| (member.node, mix::node(member.node)))
            .collect();
        let mut owners = Box::new([Owners::default(); Bucket::COUNT]);
        for bucket in Bucket::all() {
            owners[bucket.index()] = elect(bucket, &seeds);
        }
        Self { me, members: members.into(), owners }
    }

    /// A ring without members: nobody owns anything.
    #[must_use]
    pub fn empty(me: NodeId) -> Self {
        Self::new(me, [])
    }

    /// This node.
    #[must_use]
    pub const fn me(&self) -> NodeId {
        self.me
    }

    /// All members that are up, settled or not, this node among them, ordered by node.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member of that node, if it is up.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&node, |member| member.node).ok()?;
        self.members.get(at)
    }

    /// Who owns a bucket.
    #[must_use]
    pub fn owners(&self, bucket: Bucket) -> Owners {
        self.owners[bucket.index()]
    }

    /// Who owns a blob's bucket.
    #[must_use]
    pub fn owners_of(&self, digest: &Digest) -> Owners {
        self.owners(Bucket::of(digest))
    }

    /// The settled members in an order of their own for each seed, the same at all who know of the same members. Whoever
    /// comes or goes moves the others by one place at most.
    #[must_use]
    pub fn by_rank(&self, seed: u64) -> Vec<NodeId> {
        let settled = self.members.iter().filter(|member| member.settled).map(|member| member.node);
        let mut ranked: Vec<(u64, NodeId)> = settled.map(|node| (mix(seed ^ mix::node(node)), node)).collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked.into_iter().map(|(_, node)| node).collect()
    }

    /// The buckets that have other owners than in `before`, or the same in another order, or one that has been started
    /// anew since and remembers nothing.
    #[must_use]
    pub fn changed(&self, before: &Self) -> Vec<Bucket> {
        Bucket::all().filter(|bucket| !self.ranked(*bucket).eq(before.ranked(*bucket))).collect()
    }

    fn ranked(&self, bucket: Bucket) -> impl Iterator<Item = (NodeId, u64)> {
        let start = |node| self.member(node).map_or(0, |member| member.start);
        self.owners(bucket).iter().map(move |node| (node, start(node)))
    }
}

/// The two of `nodes` with the highest scores. Of equal scores the higher node wins.
fn elect(bucket: Bucket, nodes: &[(NodeId, u64)]) -> Owners {
    let mut first: Option<(u64, NodeId)> = None;
    let mut second = None;
    for (node, seed) in nodes {
        let score = Some((score(*seed, bucket), *node));
        if score > first {
            second = first;
            first = score;
        } else if score > second {
            second = score;
        }
    }
    Owners { first: first.map(|(_, node)| node), second: second.map(|(_, node)| node) }
}

/// A node's score for a bucket: part of the protocol, as nodes of every version must agree on it.
const fn score(seed: u64, bucket: Bucket) -> u64 {
    mix(seed ^ bucket.number() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn member(node: u128) -> Member {
        Member {
            node: NodeId::new(node.to_be_bytes()),
            addr: "127.0.0.1:7441".parse().unwrap(),
            zone: "".parse().unwrap(),
            start: 1,
            settled: true,
        }
    }

    fn ring(nodes: impl IntoIterator<Item = u128>) -> Ring {
        Ring::new(NodeId::new([0; 16]), nodes.into_iter().map(member))
    }

    /// That many nodes with random numbers, always the same.
    fn nodes(count: usize) -> BTreeSet<u128> {
        let mut rng = SmallRng::seed_from_u64(7);
        std::iter::repeat_with(|| rng.random()).take(count).collect()
    }

    proptest! {
        #[test]
        fn owners_are_two_different_members(nodes in prop::collection::btree_set(any::<u128>(), 0..40)) {
            let ring = ring(nodes.iter().copied());
            for bucket in Bucket::all() {
                let owners: Vec<NodeId> = ring.owners(bucket).iter().collect();
                prop_assert_eq!(owners.len(), nodes.len().min(2));
                prop_assert!(owners.len() < 2 || owners[0] != owners[1]);
                prop_assert!(owners.iter().all(|owner| ring.member(*owner).is_some()));
            }
        }

        #[test]
        fn the_order_of_hearing_of_members_makes_no_difference(
            nodes in prop::collection::btree_set(any::<u128>(), 1..40),
            seed: u64,
        ) {
            let mut shuffled: Vec<u128> = nodes.iter().copied().collect();
            shuffled.shuffle(&mut SmallRng::seed_from_u64(seed));
            prop_assert_eq!(ring(nodes).changed(&ring(shuffled)), vec![]);
        }

        #[test]
        fn who_goes_takes_only_its_own_buckets_along(
            nodes in prop::collection::btree_set(any::<u128>(), 2..40),
            at: prop::sample::Index,
        ) {
            let gone = *at.get(&nodes.iter().copied().collect::<Vec<_>>());
            let before = ring(nodes.iter().copied());
            let after = ring(nodes.into_iter().filter(|node| *node != gone));
            let gone = NodeId::new(gone.to_be_bytes());
            for bucket in Bucket::all() {
                let (old, new) = (before.owners(bucket), after.owners(bucket));
                if old.contains(gone) {
                    // Who is left keeps it, and is the first now.
                    prop_assert_eq!(new.first, old.beside(gone));
                } else {
                    prop_assert_eq!(new, old);
                }
            }
        }
    }

    #[test]
    fn buckets_are_spread_evenly() {
        // With 4 nodes the first owners have 32 buckets each, give or take; with 1,000 hardly any has more than two.
        for (count, most) in [(4, 48), (16, 20), (1000, 4)] {
            let ring = ring(nodes(count));
            let mut firsts: HashMap<NodeId, usize> = HashMap::new();
            for bucket in Bucket::all() {
                *firsts.entry(ring.owners(bucket).first.unwrap()).or_default() += 1;
            }
            let highest = firsts.values().max().copied().unwrap();
            assert!(highest <= most, "{highest} of {} buckets on one of {count} nodes", Bucket::COUNT);
        }
    }

    #[test]
    fn who_is_not_settled_owns_nothing_and_is_known_all_the_same() {
        let young = Member { settled: false, ..member(3) };
        let with = Ring::new(NodeId::new([0; 16]), [member(1), member(2), young.clone()]);
        assert_eq!(with.changed(&ring([1, 2])), vec![]);
        assert_eq!(with.member(young.node), Some(&young));
    }

    #[test]
    fn an_owner_that_was_started_anew_is_a_change_of_its_buckets_alone() {
        let again = Member { start: 2, ..member(1) };
        let before = ring([1, 2, 3]);
        let after = Ring::new(before.me(), [again.clone(), member(1), member(2), member(3)]);
        assert_eq!(after.members().len(), 3);
        let owned: Vec<Bucket> = Bucket::all().filter(|bucket| after.owners(*bucket).contains(again.node)).collect();
        assert!(!owned.is_empty());
        assert_eq!(after.changed(&before), owned);
    }

    /// Nodes of different versions meet in one cluster: these numbers never change.
    #[test]
    fn scores_are_what_they_always_were() {
        let node = NodeId::new(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f_u128.to_be_bytes());
        let scores = [0, 1, 127].map(|number| score(mix::node(node), Bucket(number)));
        assert_eq!(scores, [0x040d_d82b_fff4_f172, 0xfaa3_8fc9_4dde_9483, 0xef7c_1b7c_409a_a1dd]);
    }

    #[test]
    fn a_digest_falls_into_the_bucket_of_its_first_seven_bits() {
        let mut hash = [0xff; 32];
        assert_eq!(Bucket::of(&Digest::Sha256(hash)).number(), 127);
        hash[0] = 0b0000_0011;
        assert_eq!(Bucket::of_hash(&hash).number(), 1);
        assert!(Bucket::new(127).is_some() && Bucket::new(128).is_none());
    }
}
