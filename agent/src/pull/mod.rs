//! The heart: from a request to bytes.
//!
//! [`Pull::resolve`] asks what a tag means now; [`Pull::fetch`] finds a blob, wherever it is, and gives a [`Reader`]
//! of it. A reader follows its blob from place to place: out of the store, along a transfer that is still arriving, or
//! from a source of its own where the disk takes nothing; the caller sees one stream of bytes. However many ask for one
//! blob, there is one [`Transfer`](transfer) of it, driven by a task of its own that no caller's leaving ends.
//!
//! Nothing here knows HTTP's server side: the doors turn replies and errors into what their callers understand.

mod arrival;
mod ask;
mod begin;
mod blame;
mod bounded;
mod claims;
mod direct;
mod drive;
mod error;
mod evidence;
mod fetch;
mod flight;
mod gather;
mod gauge;
mod heard;
mod journal;
mod lanes;
mod metrics;
mod node;
mod outlook;
mod pace;
mod partings;
mod pass;
mod permit;
mod place;
mod reader;
mod received;
mod resolve;
mod rights;
mod runtime;
mod share;
mod sizes;
mod source;
mod sources;
mod suspects;
mod tags;
mod transfer;
mod trust;
mod wants;
mod word;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use error::PullError;
pub use evidence::Evidence;
pub use fetch::Found;
pub use metrics::PullMetrics;
pub use pace::Pace;
pub use pass::Passed;
pub use place::{Kind, Place, Wanted};
pub use reader::{EndedShort, Reader};
pub use resolve::Resolved;
pub use share::{Ended, NotShared, Shared};
pub use transfer::UnderWay;

use crate::config::{Config, OnDeleted};
use crate::containerd::client::Client;
use crate::image::{Digest, ImagePattern, Registry};
use crate::peers::Membership;
use crate::store::Store;
use crate::upstream::Upstreams;

/// The deadlines, bounds and policies of pulls, out of `[mirror]`, `[tags]` and `[private]`.
#[derive(Debug, Clone, Copy)]
struct Options {
    reply_deadline: Duration,
    /// Bytes.
    verify_first: u64,
    tag_max_age: Duration,
    on_deleted: OnDeleted,
    /// How long it is remembered who could pull what; zero: not at all.
    remember: Duration,
    header_timeout: Duration,
    stall_timeout: Duration,
    /// After the last byte of a blob that has begun.
    resume_within: Duration,
}

impl Options {
    /// The longest that a transfer goes without a byte before it ends: the last source that is asked within
    /// `resume_within` has its own time to answer.
    fn patience(&self) -> Duration {
        self.resume_within + self.header_timeout + self.stall_timeout
    }
}

/// Answers what containerd asks for. A cheap clone.
#[derive(Clone)]
pub struct Pull(Arc<Inner>);

struct Inner {
    options: Options,
    /// What is passed through: neither stored, nor shared with other nodes.
    ignored: Vec<ImagePattern>,
    /// The registries for which the agent's own credentials speak, while they can't be asked.
    by_node: HashSet<Registry>,
    store: Store,
    upstreams: Arc<Upstreams>,
    /// To abort what containerd took in of a blob that turned out wrong.
    containerd: Option<Arc<Client>>,
    /// The other nodes, while there are any.
    peers: Membership,
    transfers: transfer::Transfers,
    tags: flight::Flights<resolve::TagKey, Result<Resolved, PullError>>,
    rights: rights::Rights,
    looks: Arc<Semaphore>,
    comparing: resolve::Comparing,
    blame: blame::Blame,
    sizes: sizes::Sizes,
    journal: journal::Journal,
    evidence: broadcast::Sender<Evidence>,
    metrics: PullMetrics,
    lanes: lanes::Lanes,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Pull {
    /// Puts the rooms together. As long as there are no `peers`, all comes from upstream. Background work runs in `tasks` and
    /// ends with `stop`.
    #[must_use]
    pub fn new(
        config: &Config,
        store: Store,
        upstreams: Arc<Upstreams>,
        containerd: Option<Arc<Client>>,
        peers: Membership,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let options = Options {
            reply_deadline: config.mirror.reply_deadline.0,
            verify_first: config.mirror.verify_first.0,
            tag_max_age: config.tags.max_age.0,
            on_deleted: config.tags.on_deleted,
            remember: config.private.remember.0,
            header_timeout: config.mirror.header_timeout.0,
            stall_timeout: config.mirror.stall_timeout.0,
            resume_within: config.mirror.resume_within.0,
        };
        if let Some(before) = permit::now().checked_sub(options.remember.as_secs()) {
            let store = store.clone();
            tasks.spawn(async move { store.forget_before(before).await });
        }
        let journal = journal::Journal::default();
        tasks.spawn(journal.clone().write_lines(stop.clone()));
        Self(Arc::new(Inner {
            options,
            ignored: config.cache.ignore.clone(),
            by_node: node::spoken_for(config),
            store,
            upstreams,
            containerd,
            peers,
            transfers: transfer::Transfers::default(),
            tags: flight::Flights::default(),
            rights: rights::Rights::default(),
            looks: permit::looks(),
            comparing: resolve::Comparing::default(),
            blame: blame::Blame::default(),
            sizes: sizes::Sizes::default(),
            journal,
            evidence: evidence::channel(),
            metrics: PullMetrics::default(),
            lanes: lanes::Lanes::start(&stop),
            tasks,
            stop,
        }))
    }

    /// Asks a registry, as anybody, for a blob that is here: what nobody was seen to get without credentials counts as
    /// private. `None`: it gave no answer.
    pub async fn opens_to_anybody(&self, place: &Place, digest: &Digest, kind: Kind) -> Option<bool> {
        self.0.opens_to_anybody(place, digest, kind).await
    }

    /// What is counted of pulls.
    #[must_use]
    pub fn metrics(&self) -> &PullMetrics {
        &self.0.metrics
    }

    /// The transfers under way, for people to look at.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        self.0.transfers.under_way()
    }
}
