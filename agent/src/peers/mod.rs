//! The cluster at work: the machines of `cluster/` are given time, chance and messages here, over what `wire/` carries.
//!
//! [`Peers::follow`] gives a transfer its part in the one download that the cluster makes of a blob: a [`Follow`], which
//! says at each moment what to do ([`Turn`]), and is told what became of it.

mod follow;
mod gossip;
mod stream;

pub use follow::{Failed, Follow, Sought, Turn};
pub use gossip::{Gossip, GossipMetrics, GossipParts};
pub use stream::{Head, Parted, Peer, PeerError, PeerStream};
