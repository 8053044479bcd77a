use std::time::Duration;

use crate::image::{Access, Digest, MediaType, Registry, Repository, Tag};

/// As whom a registry is asked, told apart without telling who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Credential {
    /// The caller has shown nothing.
    None,
    /// Whatever anybody gets.
    Anonymous,
    /// Some credentials, by a hash under a key of the cluster.
    Keyed([u8; 32]),
}

/// A tag whose meaning is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagSought {
    /// Of which registry.
    pub registry: Registry,
    /// Of which repository there.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
    /// As whom: answers are shared by those who ask as the same.
    pub credential: Credential,
    /// An answer younger than this will do; zero: one that is asked for now.
    pub max_age: Duration,
}

/// What an upstream said of a tag, to some node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagAnswer {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// How long ago the upstream said so.
    pub age: Duration,
    /// To whom.
    pub access: Access,
}

/// Whose turn it is to ask upstream what a tag means.
#[derive(Debug)]
pub enum TagTurn {
    /// This node's, for others too: they are told by [`TagLease::told`].
    Ask(TagLease),
    /// Nobody's: this is what another was told.
    Answer(TagAnswer),
    /// The cluster is no help: this node asks for itself.
    Alone,
}

/// The turn to ask upstream what a tag means. Dropped, it passes on to the next who waits.
#[derive(Debug)]
pub struct TagLease {
    #[cfg(test)]
    script: super::script::Lease,
}

impl TagLease {
    #[cfg(test)]
    pub(super) const fn scripted(script: super::script::Lease) -> Self {
        Self { script }
    }

    /// What upstream said. Tells the others behind the caller's back; never waits.
    pub fn told(self, _answer: TagAnswer) {
        #[cfg(test)]
        self.script.told(_answer);
    }
}
