use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::metrics::{Counts, HealthMetrics};
use super::purse::Purse;
use super::report::Report;
use super::work::Work;
use crate::config;
use crate::image::ImagePattern;
use crate::keep::Catalog;
use crate::peers::{Grants, Membership};
use crate::pull::Pull;
use crate::store::Store;
use crate::upstream::Upstreams;

/// What a monitor is made of.
pub struct Parts {
    /// How often registries are asked.
    pub config: config::Health,
    /// What isn't watched.
    pub ignored: Vec<ImagePattern>,
    /// What runs here.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// Where results and what was asked outlive the process.
    pub store: Store,
    /// Whom to ask.
    pub upstreams: Arc<Upstreams>,
    /// Those who share the work.
    pub peers: Membership,
    /// The checks that this node grants.
    pub grants: Grants,
    /// What pulls find out.
    pub pull: Pull,
}

/// Checks the images that run here, and judges them. A cheap clone.
#[derive(Debug, Clone)]
pub struct Monitor {
    report: watch::Receiver<Arc<Report>>,
    metrics: HealthMetrics,
}

impl Monitor {
    /// Begins. Its work runs in `tasks` and ends with `stop`.
    #[must_use]
    pub fn start(parts: Parts, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (sender, report) = watch::channel(Arc::default());
        let purse = Purse::new(parts.peers.clone(), parts.grants.clone());
        let counts = Counts::default();
        let metrics = HealthMetrics::new(report.clone(), parts.grants.clone(), counts.clone());
        let work = Work::begin(parts, purse, counts, sender);
        tasks.spawn(stop.run_until_cancelled_owned(work));
        Self { report, metrics }
    }

    /// How it is with all images that are watched. A new one whenever something changed.
    #[must_use]
    pub fn report(&self) -> watch::Receiver<Arc<Report>> {
        self.report.clone()
    }

    /// What Prometheus sees of it.
    #[must_use]
    pub const fn metrics(&self) -> &HealthMetrics {
        &self.metrics
    }
}
