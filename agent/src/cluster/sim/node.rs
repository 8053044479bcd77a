//! One node, and what it pulls.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::directory::Directory;
use crate::cluster::follow::Follow;
use crate::cluster::serve::Serve;
use crate::cluster::{Delays, Intake, Ring};
use crate::image::{NodeId, Zone};

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Up,
    /// It hasn't come yet.
    Away,
    /// The host is gone: nothing comes back.
    Dark,
    /// The process is gone: connections are refused.
    Killed,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) zone: Zone,
    pub(super) life: Life,
    /// Nothing that went wrong was this node's.
    pub(super) is_healthy: bool,
    /// At some time it missed bytes, and neither of those whom it takes for owners answered in time.
    pub(super) was_without_owner: bool,
    /// Which part of the cluster it is in.
    pub(super) part: usize,
    pub(super) ring: Arc<Ring>,
    pub(super) directory: Option<Directory>,
    pub(super) owner_tick: Option<Duration>,
    /// How long its own calls take.
    pub(super) delays: Delays,
    /// What comes to it.
    pub(super) intake: Intake,
    /// What is added to its answers as an owner.
    pub(super) lateness: Duration,
    /// What part of the link upstream's bytes come at.
    pub(super) upstream_part: Option<f64>,
    pub(super) pulls: Vec<Option<Blob>>,
    pub(super) next: usize,
    pub(super) under_way: usize,
    pub(super) began: Option<Duration>,
    pub(super) done: Option<Duration>,
    pub(super) longest_gap: Duration,
}

impl Node {
    pub(super) fn is_up(&self) -> bool {
        self.life == Life::Up
    }
}

/// One blob on one node.
#[derive(Debug)]
pub(super) struct Blob {
    /// `None` for what was there from the start.
    pub(super) follow: Option<Follow>,
    pub(super) serve: Serve,
    pub(super) frontier: u64,
    pub(super) is_whole: bool,
    /// The stream that it reads from.
    pub(super) stream: Option<usize>,
    /// The streams that it sends.
    pub(super) sends: Vec<usize>,
    /// For when a tick is in the queue.
    pub(super) tick: Option<Duration>,
    pub(super) serve_tick: Option<Duration>,
    pub(super) last_byte: Duration,
    /// How long it has waited for the cluster without a byte, in all.
    pub(super) waited: Duration,
    /// Since when no way leads to who has more, and nobody who lives is asked.
    pub(super) cut_off_since: Option<Duration>,
    /// How many tries of others at upstream failed, one after the other, while it waited; and when the last one did.
    pub(super) failures: u32,
    pub(super) failed: Duration,
}

impl Blob {
    pub(super) fn new(now: Duration, follow: Option<Follow>, serve: Serve) -> Self {
        Self {
            follow,
            serve,
            frontier: 0,
            is_whole: false,
            stream: None,
            sends: Vec::new(),
            tick: None,
            serve_tick: None,
            last_byte: now,
            waited: Duration::ZERO,
            cut_off_since: None,
            failures: 0,
            failed: Duration::ZERO,
        }
    }
}
