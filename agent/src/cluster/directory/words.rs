//! What is asked of an owner, told to it, and answered by it.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::cluster::Bucket;
use crate::cluster::chain::{Credential, Key, Lease, Ticket, Trouble};
use crate::image::{Access, Digest, MediaType, NodeId, Registry, Repository, Tag, Zone};

/// Which of the asks that an owner holds: whoever passes asks on numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskId(pub u64);

/// "Where do I get this blob from?"
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Of what.
    pub key: Key,
    /// As whom the asker's upstreams are asked.
    pub credential: Credential,
    /// Where the asker stands.
    pub zone: Zone,
    /// Bytes, if known.
    pub size: Option<u64>,
    /// Every byte before this one is at the asker.
    pub frontier: u64,
    /// The asker's place, if it has one. It stands whoever gave it out.
    pub ticket: Option<Ticket>,
    /// A new, highest ticket is wanted: the asker fetches no longer, or is slow.
    pub to_the_tail: bool,
    /// Another was taken in the asker's place since it takes more: whoever comes later shouldn't stand behind it.
    pub slow: bool,
    /// Who was no use to the asker.
    pub troubles: Vec<Trouble>,
    /// The owner that ranks before the one that is asked didn't answer.
    pub owner_failed: bool,
}

/// What an owner says to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// What to do.
    pub answer: Answer,
    /// Upstreams that broke this digest within the hour.
    pub broken_sources: Vec<String>,
}

/// What an asker is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Fetch from upstream, from the frontier on.
    Fetch {
        /// The asker's place from now on.
        ticket: Ticket,
        /// What to report under.
        lease: Lease,
        /// The first byte that isn't to be fetched.
        upto: u64,
    },
    /// Read from one of these.
    Read {
        /// The asker's place from now on.
        ticket: Ticket,
        /// In the order in which to try them; never empty. Each is whole, or has a lower ticket.
        parents: Vec<NodeId>,
        /// How many have lower tickets: the bytes may have to come through all of them.
        ahead: u32,
    },
    /// Somebody else owns it, as far as known.
    NotOwner(Option<NodeId>),
    /// Nobody can help, or nobody should be waited for.
    Alone {
        /// A lease holder found the blob absent at its registry within the last seconds.
        absent: bool,
    },
}

/// "This is how far I am."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Of what.
    pub key: Key,
    /// The reporter's place, if it has one.
    pub ticket: Option<Ticket>,
    /// Its lease, if it has one.
    pub lease: Option<Lease>,
    /// As whom its upstreams were asked.
    pub credential: Credential,
    /// Bytes, if known.
    pub size: Option<u64>,
    /// Every byte before this one is there.
    pub frontier: u64,
    /// Bytes a second that it receives.
    pub rate: u64,
    /// By how many bytes those who read from it lag, the furthest of them.
    pub lag: u64,
    /// Whom it reads from.
    pub parent: Option<NodeId>,
    /// Where it stands.
    pub zone: Zone,
    /// What it does.
    pub state: State,
}

/// What a reporter does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Fetches from upstream.
    Fetching,
    /// Reads from another.
    Reading,
    /// Has all of it, verified.
    Whole,
    /// Gives its lease back.
    Released(Released),
    /// Has left: a pull that was given up.
    Gone,
    /// The digest broke.
    Broken {
        /// The upstreams that the bytes came from, as far as known.
        sources: Vec<String>,
        /// The node whose own copy was right, and who sent wrong bytes all the same.
        node: Option<NodeId>,
    },
}

/// Why a lease is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Released {
    /// The registry says that there is no such blob.
    Absent,
    /// It doesn't give it to this caller.
    Unauthorized,
    /// None of its upstreams answers, or goes on.
    Unreachable,
    /// They are slow.
    Slow,
}

/// What an owner says to a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Thanks.
    Noted,
    /// The lease goes on.
    GoOn {
        /// The first byte that isn't to be fetched.
        upto: u64,
    },
    /// The lease has ended: its holder asks for a place at the tail.
    Ended,
}

/// Something that a node holds whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// What.
    pub digest: Digest,
    /// Empty for what anybody may have; else the registries that gave it under authorization.
    pub registries: Vec<Registry>,
}

impl Holding {
    /// What a shelf's hash is made of. The same on every node and in every version.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hasher = Sha256::new();
        hasher.update(self.digest.to_string());
        for registry in &self.registries {
            hasher.update([0]);
            hasher.update(registry.as_str());
        }
        let hash: [u8; 32] = hasher.finalize().into();
        hash.first_chunk().copied().map_or(0, u64::from_be_bytes)
    }
}

/// What a node holds of one bucket, or what has changed there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelf {
    /// Which bucket.
    pub bucket: Bucket,
    /// Grows by one with every change that is told.
    pub generation: u64,
    /// [`Holding::hash`] of all of them, XORed.
    pub hash: u64,
    /// Whether `added` is all of it; otherwise it is what has changed since the generation before, or, with nothing
    /// changed, that all stands as it stood.
    pub all: bool,
    /// What has come.
    pub added: Vec<Holding>,
    /// What has gone.
    pub dropped: Vec<Digest>,
}

/// What an owner says to what it was told of shelves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announced {
    /// Of these it wants all.
    pub unknown: Vec<Bucket>,
    /// These aren't its own.
    pub not_owned: Vec<Bucket>,
}

/// A tag, and as whom it is asked for: only who asks as the same shares an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagKey {
    /// Of which registry.
    pub registry: Registry,
    /// Of which repository there.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
    /// As whom.
    pub credential: Credential,
}

impl TagKey {
    /// The bucket that it falls into. The same on every node and in every version.
    #[must_use]
    pub fn bucket(&self) -> Bucket {
        let mut hasher = Sha256::new();
        for part in [self.registry.as_str(), self.repository.as_str(), self.tag.as_str()] {
            hasher.update(part);
            hasher.update([0]);
        }
        match &self.credential {
            Credential::None => hasher.update([0]),
            Credential::Anonymous => hasher.update([1]),
            Credential::Keyed(hash) => hasher.update(hash),
        }
        Bucket::of_hash(&hasher.finalize().into())
    }
}

/// "What does this tag mean?"
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagAsk {
    /// Which.
    pub key: TagKey,
    /// An answer younger than this will do; zero: one that is asked for now.
    pub max_age: Duration,
    /// How long ago this was first asked: an answer that came since will do. `None` for a version that doesn't come again.
    pub waited: Option<Duration>,
    /// The owner that ranks before the one that is asked didn't answer.
    pub owner_failed: bool,
}

/// What an upstream said of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagMeaning {
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

/// What an owner says to a [`TagAsk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagAnswer {
    /// Ask upstream, and report.
    Lease(Lease),
    /// What another was told.
    Meaning(TagMeaning),
    /// The same, where it isn't known any more as whom: for who asks to find out whether it may have it.
    Known(TagMeaning),
    /// Another still asks upstream: to be asked again.
    StillAsked,
    /// Somebody else owns it, as far as known.
    NotOwner(Option<NodeId>),
    /// Nobody should be waited for.
    Alone,
}

/// What an owner wants sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// To who asked for a blob.
    Answer {
        /// Which ask.
        to: AskId,
        /// What.
        answered: Answered,
    },
    /// To who asked for a tag.
    Tag {
        /// Which ask.
        to: AskId,
        /// What.
        answer: TagAnswer,
    },
}
