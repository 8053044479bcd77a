//! Membership at work: a task that gives [`Members`] its time, chance and datagrams.
//!
//! It finds out which address others reach this node at, knocks at the seeds (`seeds.rs`) and at the members that were
//! known last (`roster.rs`, kept on disk, so that a restart needs no seed), and publishes the [`Ring`] whenever it
//! changes. Nobody waits for any of it: without a seed that answers, the ring has nobody but this node.

mod metrics;
mod roster;
mod seeds;
mod task;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use metrics::GossipMetrics;

use task::Task;

use crate::cluster::Ring;
use crate::config;
use crate::image::NodeId;
use crate::wire::Datagrams;

#[cfg(doc)]
use crate::cluster::Members;

/// Doubts that wait to be looked at; more are dropped.
const DOUBTS: usize = 64;

/// What membership is made of.
#[derive(Debug)]
pub struct GossipParts {
    /// This node.
    pub node: NodeId,
    /// Seeds, addresses and zone.
    pub config: config::Peers,
    /// The way to the others. Nobody else receives from it.
    pub datagrams: Datagrams,
    /// Where the last known members are written down: `<cache.dir>/peers`.
    pub dir: PathBuf,
    /// What is counted.
    pub metrics: GossipMetrics,
    /// What it runs in,
    pub tasks: TaskTracker,
    /// and what ends it: it says good-bye within half a second.
    pub stop: CancellationToken,
}

/// Who is a member now. A cheap clone.
#[derive(Debug, Clone)]
pub struct Gossip {
    ring: watch::Receiver<Arc<Ring>>,
    doubts: mpsc::Sender<NodeId>,
}

impl Gossip {
    /// Begins to take part. Needs a runtime.
    #[must_use]
    pub fn start(parts: GossipParts) -> Self {
        let (ring, watched) = watch::channel(Arc::new(Ring::empty(parts.node)));
        let (doubts, doubted) = mpsc::channel(DOUBTS);
        let tasks = parts.tasks.clone();
        tasks.spawn(Task::new(parts, ring, doubted).run());
        Self { ring: watched, doubts }
    }

    /// The members, and who owns what. Changes at most ten times a second; nobody is in it before this node has found
    /// its own address.
    #[must_use]
    pub fn ring(&self) -> watch::Receiver<Arc<Ring>> {
        self.ring.clone()
    }

    /// That node doesn't answer a request: it is probed at once. Nobody is taken for dead on one node's word.
    pub fn suspect(&self, node: NodeId) {
        // With so many doubts about, this one adds nothing.
        let _ = self.doubts.try_send(node);
    }
}
