//! What is seen of the agent: the command line's socket, the status page, and what Prometheus and probes read.
//!
//! The socket speaks HTTP with JSON bodies; [`Client`] is its other end. The types of [`view`] are the contract between
//! the two.

mod client;
mod cluster;
mod figures;
mod flows;
mod metrics_port;
pub mod page;
mod port;
mod process;
mod socket;
mod standing;
mod stock;
mod textfile;
pub mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::watch;

pub use client::{Client, ClientError};
pub use cluster::told;
pub use figures::Figures;
pub use flows::{Bytes, Flows, Minute, Origin};
pub use metrics_port::MetricsPort;
pub use page::Page;
pub use socket::Socket;
pub use standing::Standing;
pub use stock::{Goes, KeptImage, KeptImages, KeptRest, Prefetching};
pub use textfile::Textfile;

use self::socket::Lines;
use crate::config::Config;
use crate::containerd::canary::{self, Canary};
use crate::health::Report;
use crate::image::{Digest, NodeId};
use crate::keep::{Catalog, Collected, Keep};
use crate::peers::{Heard, Peers};
use crate::pull::Pull;
use crate::store::{Listed, Proof, Store, Stuck};
use crate::upstream::Upstreams;

/// How many blobs are listed at a time.
const BATCH: usize = 256;
/// How long a canary that somebody asked for may take.
const CANARY_DEADLINE: std::time::Duration = std::time::Duration::from_secs(40);

/// The running agent, as the socket shows it.
pub struct Agent {
    /// What it was started with.
    pub config: Config,
    /// When it was started.
    pub started: Instant,
    /// What the mirror counts.
    pub requests: Arc<AtomicU64>,
    /// The cache.
    pub store: Store,
    /// Pulls under way.
    pub pull: Pull,
    /// What is kept, and why.
    pub keep: Keep,
    /// The other nodes, where a cluster is configured.
    pub peers: Option<Peers>,
    /// The registries.
    pub upstreams: Arc<Upstreams>,
    /// The runtime that is asked for canaries.
    pub containerd: Arc<crate::containerd::client::Client>,
    /// The proof that it comes to us.
    pub canary: Arc<Canary>,
    /// The outcome of writing hosts.toml, as it was last.
    pub hosts: watch::Receiver<Option<Vec<view::HostsFolder>>>,
    /// What was taken over from the user's own files.
    pub adopted: watch::Receiver<Vec<view::Adopted>>,
    /// How the images are that are known here.
    pub report: watch::Receiver<Arc<Report>>,
    /// Where bytes came from lately.
    pub flows: Flows,
}

impl Agent {
    /// The images of this node.
    fn images(&self) -> view::images::Images {
        images(&self.keep.catalog(), &self.report)
    }

    /// The images that run anywhere in the cluster; without one, those that run here.
    async fn cluster(&self) -> view::images::Images {
        let own = self.images();
        let Some(peers) = &self.peers else {
            return cluster::merged(NodeId::new([0; 16]), &own, Heard::default());
        };
        cluster::merged(peers.node(), &own, peers.images().await)
    }

    /// All that the page shows.
    pub async fn sight(&self) -> page::Sight {
        page::Sight {
            host: sysinfo::System::host_name().ok(),
            now: Timestamp::now(),
            status: self.status().await,
            images: self.images(),
            peers: self.peers.as_ref().map(Peers::shown),
            flows: self.flows.last_hour(),
        }
    }

    async fn status(&self) -> view::Status {
        let usage = self.store.usage().await.unwrap_or_default();
        let upstreams = self.upstreams.all().into_iter().flat_map(|(registry, chain)| {
            chain.iter().map(|upstream| view::Upstream::of(&registry, upstream)).collect::<Vec<_>>()
        });
        view::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            resident_bytes: process::resident_bytes(),
            mirror: view::Mirror {
                listen: self.config.mirror.listen,
                tls: self.config.mirror.tls,
                requests: self.requests.load(Ordering::Relaxed),
            },
            containerd: self.config.containerd.socket.clone(),
            canary: self.canary.reports().borrow().clone(),
            hosts: self.hosts.borrow().clone(),
            adopted: self.adopted.borrow().clone(),
            cache: view::Cache {
                dir: self.config.cache.dir.clone(),
                writable: self.store.is_writable(),
                blobs: usage.blobs,
                bytes: usage.bytes,
                arriving_bytes: usage.ingest_bytes,
                max_bytes: self.config.cache.max_bytes.map(|bytes| bytes.0),
                max_disk_percent: self.config.cache.max_disk_percent.value(),
                disk_size_bytes: usage.disk.map(|disk| disk.size),
                disk_used_bytes: usage.disk.map(|disk| disk.used),
            },
            transfers: self.pull.under_way(),
            upstreams: upstreams.collect(),
        }
    }

    async fn prove(&self) -> canary::Report {
        self.canary.prove(&self.containerd, CANARY_DEADLINE).await
    }

    async fn collect(&self, dry_run: bool) -> view::Collected {
        view::Collected::from(&self.keep.collect(dry_run).await)
    }

    async fn kept(&self, lines: Lines) {
        let mut rows = Rows::default();
        while let Some(row) = self.next(&mut rows, &lines).await {
            let kept = kept(&self.store, row).await;
            if !lines.write(&kept).await {
                return;
            }
        }
    }

    async fn verify(&self, lines: Lines) {
        let mut rows = Rows::default();
        while let Some(row) = self.next(&mut rows, &lines).await {
            if let Some(checked) = check(&self.store, &row).await
                && !lines.write(&checked).await
            {
                return;
            }
        }
    }

    /// The next blob. Where it can't be told whether there is one, the last line says so.
    async fn next(&self, rows: &mut Rows, lines: &Lines) -> Option<Listed> {
        match rows.next(&self.store).await {
            Ok(row) => row,
            Err(error) => {
                lines.write(&view::Failed { error: error.to_string() }).await;
                None
            }
        }
    }
}

/// The images of this node, as catalog and report have them at the moment.
#[must_use]
pub fn images(catalog: &watch::Receiver<Arc<Catalog>>, report: &watch::Receiver<Arc<Report>>) -> view::images::Images {
    let (catalog, report) = (Arc::clone(&catalog.borrow()), Arc::clone(&report.borrow()));
    view::images::Images::of(&catalog, &report)
}

impl From<&Collected> for view::Collected {
    fn from(collected: &Collected) -> Self {
        let Collected { plan, bytes, blobs } = collected;
        Self { blobs: *blobs, bytes: *bytes, left: plan.left, goes: plan.goes.iter().map(Goes::from).collect() }
    }
}

/// What a store holds, one after the other, in the order of digests.
#[derive(Debug, Default)]
pub struct Rows {
    batch: std::vec::IntoIter<Listed>,
    after: Option<Digest>,
}

impl Rows {
    /// The next blob; `None` at the end.
    ///
    /// # Errors
    /// When the disk doesn't answer: then there may be more.
    pub async fn next(&mut self, store: &Store) -> Result<Option<Listed>, Stuck> {
        if self.batch.len() == 0 {
            self.batch = store.list(self.after.as_ref(), BATCH).await?.into_iter();
        }
        let row = self.batch.next();
        self.after = row.as_ref().map(|row| row.digest).or(self.after);
        Ok(row)
    }
}

/// One blob as `larder cache ls` shows it.
pub async fn kept(store: &Store, listed: Listed) -> view::Kept {
    let repositories = store.repositories(&listed.digest).await;
    view::Kept {
        digest: listed.digest,
        size: listed.size,
        media_type: listed.media_type.map(|media_type| media_type.to_string()),
        last_used: listed.used / 1000,
        repositories: repositories.iter().map(|(registry, name)| format!("{registry}/{name}")).collect(),
    }
}

/// Hashes one blob; `None` when it is gone by now.
pub async fn check(store: &Store, listed: &Listed) -> Option<view::Checked> {
    let wrong = match store.check(&listed.digest).await {
        Proof::Sound => None,
        Proof::Gone => return None,
        Proof::Wrong => Some("its bytes are not what its name says; it was taken out of service".to_owned()),
        Proof::Unknown => Some("it can't be read".to_owned()),
    };
    Some(view::Checked { digest: listed.digest, bytes: listed.size, wrong })
}
