//! The cluster at work: the machines of `cluster/` are given time, chance and messages here, over what `wire/` carries.
//!
//! [`Peers::follow`] gives a transfer its part in the one download that the cluster makes of a blob: a [`Follow`], which
//! says at each moment what to do ([`Turn`]), and is told what became of it. [`Peers::tag`] does the same for what a tag
//! means; [`Peers::watch`] and [`Peers::grant_checks`] have one node check an image for all. [`Peers::admit`] takes a peer that reads from here, and [`Peers::directory`] is this node's part of the
//! directory, for the door that peers come to. [`Membership`] says whether there are any: who can't join at its start may
//! do so later, and goes on by itself until then.
//!
//! Tasks: one for each transfer that is under way here, one for the directory and one for
//! checks, one that tells owners what is held here.
//! All run on the main runtime, whoever asks for them, and end with it.

mod announce;
mod calls;
mod chain;
mod checks;
mod copies;
mod directory;
mod error;
mod follow;
pub mod frames;
mod gossip;
mod grants;
mod images;
mod incoming;
mod membership;
pub mod messages;
mod metrics;
mod owner;
mod pulse;
mod rights;
#[cfg(test)]
pub mod script;
mod shown;
mod slack;
mod start;
mod stream;
mod suspects;
mod tags;
mod trace;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use announce::provenance_at_containerd;
pub use calls::NODE_HEADER;
pub use chain::{Child, Due};
pub use checks::Granted;
pub use directory::Directory;
pub use error::{PeerError, label};
pub use follow::{Failed, Follow, Sought, Turn};
pub use gossip::{Gossip, GossipMetrics, GossipParts};
pub use grants::Grants;
pub use images::Heard;
pub use membership::{ClusterMetrics, Membership, Part};
pub use messages::ReadAsk;
pub use metrics::{Nearness, PeerMetrics};
pub use rights::BlobOf;
pub use shown::{Shown, ShownMember, ShownPart, ShownReading, ShownUpload};
pub use start::{Candidate, Ends, JoinError, Parts, Port};
pub use stream::{Head, Parted, Peer, PeerStream};
pub use tags::{TagLease, TagSought, TagTurn};
pub use trace::{InvalidTrace, Trace};

pub use crate::cluster::chain::Credential;
pub use crate::cluster::copies::WantedCopies;
pub use crate::cluster::directory::{PASSED_ON_WHOLE, TagMeaning};
pub use crate::cluster::rights::Right;

use self::chain::{Chain, Chains};
use self::owner::held;
use crate::cluster::chain::Parting;
use crate::cluster::checks::Board;
use crate::cluster::copies::Copies;
use crate::cluster::rights::Told;
use crate::cluster::{Delays, Intake, Ring};
use crate::image::{NodeId, Registry, Zone};
use crate::store::{Secret, Store};
use crate::upstream::Grant;
use crate::wire::{Channels, Identity, Limiter};

/// Peers that read from here at a time, of whatever.
const MOST_UPLOADS: usize = 256;
/// A peer whose bytes broke a digest is avoided for so long.
const AVOIDED_FOR: Duration = Duration::from_secs(3600);

/// The other nodes. A cheap clone.
#[derive(Debug, Clone)]
pub struct Peers(Backing);

#[derive(Debug, Clone)]
enum Backing {
    Cluster(Arc<Inner>),
    #[cfg(test)]
    Script(script::Script),
}

/// What all parts share.
struct Inner {
    node: NodeId,
    zone: Zone,
    /// What the machines count time from.
    started: Instant,
    ring: watch::Receiver<Arc<Ring>>,
    gossip: Option<Gossip>,
    channels: Arc<Channels>,
    failing: calls::Failing,
    delays: Mutex<Delays>,
    intake: Mutex<Intake>,
    avoided: Avoided,
    slack: slack::Slack,
    pulses: pulse::Pulses,
    directory: Arc<owner::Owner>,
    grants: Grants,
    /// When the book of which registry was last asked for.
    handed: Mutex<HashMap<Registry, Instant>>,
    board: Mutex<Board>,
    copies: Mutex<Copies>,
    /// What others told of who may pull what, once it is read from the disk.
    told: tokio::sync::Mutex<Option<Told>>,
    /// How long that is kept, and counts; zero: not at all.
    remember: Duration,
    chains: Chains,
    uploads: Arc<Semaphore>,
    upload: Option<Arc<Limiter>>,
    download: Option<Arc<Limiter>>,
    /// Has the key of the hashes that tell credentials apart.
    identity: Arc<Identity>,
    store: Store,
    metrics: PeerMetrics,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Peers {
    /// One that does what a test says.
    #[cfg(test)]
    pub fn scripted(script: &script::Script) -> Self {
        Self(Backing::Script(script.clone()))
    }

    /// Does what this node is an owner of go by the members that it was told last?
    #[cfg(test)]
    pub fn goes_by_its_ring(&self) -> bool {
        Arc::ptr_eq(&self.inner().directory.ring(), &self.inner().ring())
    }

    fn inner(&self) -> &Arc<Inner> {
        match &self.0 {
            Backing::Cluster(inner) => inner,
            #[cfg(test)]
            Backing::Script(_) => panic!("there is no cluster behind a script"),
        }
    }

    /// A transfer's part in the cluster's single download of a blob. Never waits; the cluster is asked behind it.
    ///
    /// `frontier`: every byte before it is here already. `size`: in bytes, if it is known.
    #[must_use]
    pub fn follow(&self, sought: Sought, size: Option<u64>, frontier: u64, trace: &Trace) -> Follow {
        match &self.0 {
            Backing::Cluster(inner) if inner.stop.is_cancelled() => Follow::alone(),
            Backing::Cluster(inner) => Follow::begin(inner, sought, size, frontier, trace),
            #[cfg(test)]
            Backing::Script(script) => Follow::scripted(script.follow()),
        }
    }

    /// What tells the credentials of `grant` from all others on every node of the cluster, and says nothing else.
    #[must_use]
    pub fn credential(&self, grant: &Grant) -> Credential {
        let keyed = grant.hashed_by(|parts| match &self.0 {
            // The key may change at any time, and is to be the same on every node.
            Backing::Cluster(inner) => Secret::new(&inner.identity.cluster_key(b"credentials")).hash(&parts),
            #[cfg(test)]
            Backing::Script(_) => [0; 32],
        });
        match (keyed, grant) {
            (Some(keyed), _) => Credential::Keyed(keyed),
            (None, Grant::None) => Credential::None,
            (None, _) => Credential::Anonymous,
        }
    }

    /// Whose turn it is to ask upstream what a tag means: this node's, or another's, whose answer is waited for. Takes as
    /// long as `sought.patience` at most.
    pub async fn tag(&self, sought: &TagSought, trace: &Trace) -> TagTurn {
        match &self.0 {
            Backing::Cluster(inner) => inner.tag_turn(sought, trace).await,
            #[cfg(test)]
            Backing::Script(script) => script.tag_turn(sought),
        }
    }

    /// The newest answer that the tag's owners know, for when no upstream gives one. Takes at most a second.
    pub async fn newest(&self, sought: &TagSought, trace: &Trace) -> Option<TagMeaning> {
        match &self.0 {
            Backing::Cluster(inner) => inner.newest_answer(sought, trace).await,
            #[cfg(test)]
            Backing::Script(script) => script.newest_answer(),
        }
    }

    /// Takes a peer that reads what is here. `whole`: all of it is, and verified.
    ///
    /// # Errors
    /// How to part from it at once.
    pub fn admit(&self, reader: NodeId, ask: &ReadAsk, whole: bool) -> Result<Child, Parting> {
        let inner = self.inner();
        let place = Arc::clone(&inner.uploads).try_acquire_owned().map_err(|_| Parting::Full(Vec::new()))?;
        Chain::admit(inner, reader, ask, whole, place)
    }

    /// What this node says of itself to one who waits for a blob to begin here.
    ///
    /// # Errors
    /// How to part from it, since it isn't to wait here any longer.
    pub fn says_while_it_begins(&self, ask: &ReadAsk) -> Result<larder_proto::peers::Beat, Parting> {
        Chain::says_while_it_begins(self.inner(), ask).map(|beat| messages::beat_of(&beat))
    }

    /// The part of the directory that this node owns, for those who come to ask.
    #[must_use]
    pub fn directory(&self) -> Directory {
        Directory::new(Arc::clone(self.inner()))
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner().node
    }

    /// Where it stands.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.inner().zone
    }

    /// What is sent to peers at which rate; `None`: as fast as it goes.
    #[must_use]
    pub fn upload(&self) -> Option<&Arc<Limiter>> {
        self.inner().upload.as_ref()
    }

    /// What is counted of peers.
    #[must_use]
    pub fn metrics(&self) -> &PeerMetrics {
        &self.inner().metrics
    }

    /// What every other member says of the images that run there. Takes 20 seconds at most.
    pub async fn images(&self) -> Heard {
        self.inner().images().await
    }

    /// The cluster, for people to look at.
    #[must_use]
    pub fn shown(&self) -> Shown {
        self.inner().shown()
    }
}

impl Inner {
    fn ring(&self) -> Arc<Ring> {
        self.ring.borrow().clone()
    }

    /// Time, as the machines count it.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// After how long an answer is late at present.
    fn late(&self) -> Duration {
        held(&self.delays).late(self.now())
    }

    /// A member doesn't answer: it is looked at more closely.
    fn doubt(&self, node: NodeId) {
        if let Some(gossip) = &self.gossip {
            gossip.suspect(node);
        }
    }

    fn nearness(&self, zone: &Zone) -> Nearness {
        if *zone == self.zone { Nearness::Same } else { Nearness::Other }
    }

    /// A peer's bytes broke a digest.
    fn avoid(&self, node: NodeId) {
        tracing::warn!(peer = %node, "a peer sent wrong bytes: it is avoided for an hour");
        self.metrics.blamed();
        self.avoided.add(node);
    }

    fn shown(&self) -> Shown {
        let ring = self.ring();
        let mut owns: HashMap<NodeId, usize> = HashMap::new();
        for bucket in crate::cluster::Bucket::all() {
            ring.owners(bucket).iter().for_each(|owner| *owns.entry(owner).or_default() += 1);
        }
        let member = |member: &crate::cluster::Member| ShownMember {
            node: member.node.to_string(),
            addr: member.addr,
            zone: member.zone.as_str().to_owned(),
            settled: member.settled,
            owns: owns.get(&member.node).copied().unwrap_or(0),
        };
        let (reading, uploads) = self.chains.shown();
        Shown {
            node: self.node.to_string(),
            addr: ring.member(self.node).map(|member| member.addr),
            zone: self.zone.as_str().to_owned(),
            announced: self.metrics.announced(),
            known: self.directory.known(),
            members: ring.members().iter().map(member).collect(),
            reading,
            uploads,
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Peers that sent wrong bytes.
#[derive(Debug, Default)]
struct Avoided(Mutex<HashMap<NodeId, Instant>>);

impl Avoided {
    fn add(&self, node: NodeId) {
        let now = Instant::now();
        let mut avoided = held(&self.0);
        avoided.retain(|_, until| *until > now);
        avoided.insert(node, now + AVOIDED_FOR);
    }

    fn holds(&self, node: NodeId) -> bool {
        let avoided = held(&self.0);
        avoided.get(&node).is_some_and(|until| *until > Instant::now())
    }
}
