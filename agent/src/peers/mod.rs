//! The cluster at work: the machines of `cluster/` are given time, chance and messages here, over what `wire/` carries.
//!
//! [`Peers::follow`] gives a transfer its part in the one download that the cluster makes of a blob: a [`Follow`], which
//! says at each moment what to do ([`Turn`]), and is told what became of it.

mod follow;
pub mod frames;
#[cfg(test)]
pub mod script;
mod stream;
mod tags;
mod trace;

use std::sync::Arc;

pub use follow::{Failed, Follow, Sought, Turn};
pub use stream::{Head, Parted, Peer, PeerError, PeerStream};
pub use tags::{Credential, TagAnswer, TagLease, TagSought, TagTurn};
pub use trace::{InvalidTrace, Trace};

use crate::upstream::Grant;

/// The other nodes. A cheap clone.
#[derive(Debug, Clone)]
pub struct Peers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    #[cfg(test)]
    script: script::Script,
}

impl Peers {
    /// One that does what a test says.
    #[cfg(test)]
    pub fn scripted(script: &script::Script) -> Self {
        Self(Arc::new(Inner { script: script.clone() }))
    }

    /// A transfer's part in the cluster's single download of a blob. Never waits; the cluster is asked behind it.
    ///
    /// `frontier`: every byte before it is here already. `size`: in bytes, if it is known.
    #[must_use]
    pub fn follow(&self, _sought: Sought, _size: Option<u64>, _frontier: u64, _trace: &Trace) -> Follow {
        #[cfg(test)]
        return Follow::scripted(self.0.script.follow());
        #[cfg(not(test))]
        Follow::alone()
    }

    /// What tells the credentials of `grant` from all others on every node of the cluster, and says nothing else.
    #[must_use]
    pub fn credential(&self, grant: &Grant) -> Credential {
        match grant {
            Grant::None => Credential::None,
            Grant::Anonymous => Credential::Anonymous,
            Grant::Credentials(_) => Credential::Keyed([0; 32]),
        }
    }

    /// Whose turn it is to ask upstream what a tag means: this node's, or another's, whose answer is waited for. Takes at
    /// most two seconds.
    pub async fn tag(&self, sought: &TagSought, _trace: &Trace) -> TagTurn {
        #[cfg(test)]
        return self.0.script.tag_turn(sought);
        #[cfg(not(test))]
        TagTurn::Alone
    }

    /// The newest answer that the tag's owners know, for when no upstream gives one. Takes at most a second.
    pub async fn newest(&self, _sought: &TagSought, _trace: &Trace) -> Option<TagAnswer> {
        #[cfg(test)]
        return self.0.script.newest_answer();
        #[cfg(not(test))]
        None
    }
}
