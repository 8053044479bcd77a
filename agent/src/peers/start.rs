use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower_service::Service;

use super::announce::announce;
use super::checks::follow_ring;
use super::owner::Owner;
use super::{Backing, ClusterMetrics, Gossip, GossipParts, Grants, Inner, MOST_UPLOADS, PeerMetrics, Peers};
use crate::cluster::Ring;
use crate::config;
use crate::containerd::inventory::Inventory;
use crate::store::Store;
use crate::wire::{BindError, Channels, Datagrams, Identity, IdentityError, Limiter, PeerListener, WireMetrics};

/// What a node's part in the cluster is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Zone and limits.
    pub config: &'a config::Peers,
    /// The checks of images that this node grants.
    pub grants: Grants,
    /// How long it is remembered who could pull what; zero: not at all.
    pub remember: Duration,
    /// What is counted.
    pub metrics: PeerMetrics,
    /// Who this node is.
    pub identity: &'a Arc<Identity>,
    /// Who the members are.
    pub ring: watch::Receiver<Arc<Ring>>,
    /// Who is told of members that don't answer; `None`: nobody.
    pub gossip: Option<Gossip>,
    /// The way to them.
    pub channels: Arc<Channels>,
    /// What is held here, and told to owners.
    pub store: Store,
    /// What holds more, which they are told of too.
    pub inventory: Option<watch::Receiver<Option<Arc<Inventory>>>>,
    /// What works behind runs in these,
    pub tasks: TaskTracker,
    /// and ends with this.
    pub stop: CancellationToken,
}

/// A node that would join its cluster.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Addresses, zone and limits.
    pub config: config::Peers,
    /// Where this node's number and what it knows of the members is kept.
    pub dir: PathBuf,
    /// What is held here, and told to owners.
    pub store: Store,
    /// What containerd holds, which they are told of too.
    pub inventory: watch::Receiver<Option<Arc<Inventory>>>,
    /// The checks of images that this node grants.
    pub grants: Grants,
    /// How long it is remembered who could pull what; zero: not at all.
    pub remember: Duration,
    /// What is counted.
    pub metrics: ClusterMetrics,
    /// What works behind runs in these,
    pub tasks: TaskTracker,
    /// and ends so.
    pub ends: Ends,
}

/// When a node ends: first it tells the others, then it serves what is under way, and then all that works behind ends.
#[derive(Debug, Clone)]
pub struct Ends {
    /// It says good-bye, and the port closes.
    pub stop: CancellationToken,
    /// What works behind ends.
    pub end: CancellationToken,
}

/// Why a node has no part in its cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It doesn't know who it is, or whom to trust.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its port can't be had.
    #[error(transparent)]
    Port(#[from] BindError),
    /// Its port for datagrams can't be had.
    #[error(
        "no UDP port for peers at {address}: {source}; is another process on it? `listen` in [peers] names another one"
    )]
    Datagrams {
        /// Which.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// The port that peers come to, not yet served.
#[derive(Debug)]
pub struct Port {
    listener: PeerListener,
    identity: Arc<Identity>,
    wire: WireMetrics,
    stop: CancellationToken,
}

impl Port {
    /// Serves until the node ends.
    pub async fn serve<S>(self, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        self.listener.serve(service, self.identity, self.wire, self.stop).await;
    }
}

impl Peers {
    /// Joins the cluster that is configured. Others come to the port from then on, so it is to be served soon. Needs a
    /// runtime: the one that all of it runs on. `identity`: opened by [`Identity::open`], which blocks.
    ///
    /// # Errors
    /// When a port can't be had.
    pub fn join(candidate: &Candidate, identity: Arc<Identity>) -> Result<(Self, Port), JoinError> {
        let Candidate { config, dir, store, inventory, grants, remember, metrics, tasks, ends } = candidate.clone();
        let wire = metrics.wire;
        let listener = PeerListener::bind(config.listen)?;
        let datagrams = Datagrams::bind(config.listen, Arc::clone(&identity), wire.clone())
            .map_err(|source| JoinError::Datagrams { address: config.listen, source })?;
        let gossip = Gossip::start(GossipParts {
            node: identity.node(),
            config: config.clone(),
            datagrams,
            dir,
            metrics: metrics.gossip,
            tasks: tasks.clone(),
            stop: ends.stop.clone(),
        });
        let channels = Channels::new(Arc::clone(&identity), wire.clone());
        tasks.spawn(Arc::clone(&identity).keep_fresh(ends.end.clone()));
        tasks.spawn(Arc::clone(&channels).close_idle(ends.end.clone()));
        let peers = Self::new(Parts {
            config: &config,
            grants,
            remember,
            metrics: metrics.peers,
            identity: &identity,
            ring: gossip.ring(),
            gossip: Some(gossip),
            channels,
            store,
            inventory: Some(inventory),
            tasks,
            stop: ends.end,
        });
        metrics.joined.set(1);
        Ok((peers, Port { listener, identity, wire, stop: ends.stop }))
    }

    /// Takes part in a cluster whose parts are there. Needs a runtime: the one that all of it runs on.
    #[must_use]
    pub fn new(parts: Parts<'_>) -> Self {
        let Parts {
            config,
            grants,
            remember,
            metrics,
            identity,
            ring,
            gossip,
            channels,
            store,
            inventory,
            tasks,
            stop,
        } = parts;
        let (started, node) = (Instant::now(), identity.node());
        let directory = Owner::new(node, ring.borrow().clone(), started, metrics.clone());
        let limiter = |total: Option<config::Bytes>, per_peer: Option<config::Bytes>| {
            (total.is_some() || per_peer.is_some()).then(|| Arc::new(Limiter::new(total, per_peer)))
        };
        let inner = Arc::new(Inner {
            node,
            zone: config.zone.clone(),
            started,
            ring,
            gossip,
            channels,
            failing: Default::default(),
            delays: Default::default(),
            intake: Default::default(),
            avoided: Default::default(),
            slack: Default::default(),
            pulses: Default::default(),
            directory: Arc::new(directory),
            grants,
            handed: Default::default(),
            board: Default::default(),
            copies: Default::default(),
            told: Default::default(),
            remember,
            chains: Default::default(),
            uploads: Arc::new(Semaphore::new(MOST_UPLOADS)),
            upload: limiter(config.max_upload, config.max_upload_per_peer),
            download: limiter(config.max_download, config.max_download_per_peer),
            identity: Arc::clone(identity),
            store,
            metrics,
            runtime: Handle::current(),
            tasks,
            stop,
        });
        inner.tasks.spawn(Arc::clone(&inner.directory).run(inner.ring.clone(), inner.stop.clone()));
        inner.tasks.spawn(follow_ring(Arc::clone(&inner)));
        inner.tasks.spawn(announce(Arc::clone(&inner), inner.store.clone(), inventory));
        Self(Backing::Cluster(inner))
    }
}
