use std::sync::Arc;

use aws_lc_rs::hmac;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::announce::announce;
use super::owner::Owner;
use super::{Backing, Inner, MOST_UPLOADS, PeerMetrics, Peers};
use crate::cluster::Ring;
use crate::config;
use crate::store::Store;
use crate::wire::{Channels, Identity, Limiter};

/// What a node's part in the cluster is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Zone and limits.
    pub config: &'a config::Peers,
    /// Who this node is.
    pub identity: &'a Identity,
    /// Who the members are.
    pub ring: watch::Receiver<Arc<Ring>>,
    /// The way to them.
    pub channels: Arc<Channels>,
    /// What is held here, and told to owners.
    pub store: Store,
    /// What works behind runs in these,
    pub tasks: TaskTracker,
    /// and ends with this.
    pub stop: CancellationToken,
}

impl Peers {
    /// Takes part in the cluster. Needs a runtime: the one that all of it runs on.
    #[must_use]
    pub fn new(parts: Parts<'_>) -> Self {
        let Parts { config, identity, ring, channels, store, tasks, stop } = parts;
        let (metrics, started, node) = (PeerMetrics::default(), Instant::now(), identity.node());
        let directory = Owner::new(node, ring.borrow().clone(), started, metrics.clone());
        let limiter = |total: Option<config::Bytes>, per_peer: Option<config::Bytes>| {
            (total.is_some() || per_peer.is_some()).then(|| Arc::new(Limiter::new(total, per_peer)))
        };
        let inner = Arc::new(Inner {
            node,
            zone: config.zone.clone(),
            started,
            ring,
            channels,
            failing: Default::default(),
            avoided: Default::default(),
            directory: Arc::new(directory),
            chains: Default::default(),
            uploads: Arc::new(Semaphore::new(MOST_UPLOADS)),
            upload: limiter(config.max_upload, config.max_upload_per_peer),
            download: limiter(config.max_download, config.max_download_per_peer),
            credentials: hmac::Key::new(hmac::HMAC_SHA256, &identity.cluster_key(b"credentials")),
            store,
            metrics,
            runtime: Handle::current(),
            tasks,
            stop,
        });
        inner.tasks.spawn(Arc::clone(&inner.directory).run(inner.ring.clone(), inner.stop.clone()));
        inner.tasks.spawn(announce(Arc::clone(&inner), inner.store.clone()));
        Self(Backing::Cluster(inner))
    }
}
