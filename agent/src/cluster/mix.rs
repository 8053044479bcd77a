//! A hash that every node of every version computes alike.
//!
//! Owners are elected by it and members compare what they know by it: it is part of the protocol, and never changes. It
//! spreads what is random already, such as the numbers of nodes, and is no defence against who may choose them.

use crate::image::NodeId;

/// One step of the generator SplitMix64: a permutation of 64 bits, in which each bit of the input moves about half of
/// the output's.
pub(super) const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A node's number in 64 bits.
pub(super) const fn node(node: NodeId) -> u64 {
    let number = u128::from_be_bytes(*node.as_bytes());
    // Truncating: the two halves.
    mix(mix((number >> 64) as u64) ^ number as u64)
}
