use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::journal::SOURCES;
use super::received::ORIGINS;

/// How transfers end.
const ENDS: [&str; 9] = ["whole", "held", "unstored", "absent", "cut", "wrong", "disk", "unread", "stopped"];
/// Where answers about tags come from.
const ANSWERS: [&str; 6] = ["upstream", "fresh", "peer", "stale", "deleted", "none"];

/// What is counted of pulls. Cheap clones of the same counters.
#[derive(Debug, Clone, Default)]
pub struct PullMetrics {
    served: Family<SourceLabel, Counter>,
    received: Family<SourceLabel, Counter>,
    transfers: Family<ResultLabel, Counter>,
    pub(super) under_way: Gauge,
    tags: Family<ResultLabel, Counter>,
    stale_age: Gauge,
    pub(super) poisoned: Counter,
    pub(super) disagreements: Counter,
    pub(super) outage_permits: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl PullMetrics {
    /// Enters them all.
    pub fn register(&self, registry: &mut Registry) {
        // From zero on: what first appears as 1 has never risen for Prometheus.
        SOURCES.into_iter().for_each(|source| drop(self.served.get_or_create(&SourceLabel { source })));
        ORIGINS.into_iter().for_each(|source| drop(self.received.get_or_create(&SourceLabel { source })));
        ENDS.into_iter().for_each(|result| drop(self.transfers.get_or_create(&ResultLabel { result })));
        ANSWERS.into_iter().for_each(|result| drop(self.tags.get_or_create(&ResultLabel { result })));
        registry.register_with_unit(
            "larder_served",
            "Bytes of blobs and manifests given to callers, by where they came from",
            Unit::Bytes,
            self.served.clone(),
        );
        registry.register_with_unit(
            "larder_transfers_received",
            "Bytes of blobs and manifests that transfers brought here, by where they came from",
            Unit::Bytes,
            self.received.clone(),
        );
        registry.register("larder_transfers", "Transfers that ended, by how", self.transfers.clone());
        registry.register("larder_transfers_active", "Transfers under way", self.under_way.clone());
        registry.register("larder_tag_answers", "Answers about tags, by where they came from", self.tags.clone());
        registry.register_with_unit(
            "larder_tag_stale_age",
            "Age of the last tag answer that was given because no upstream answered",
            Unit::Seconds,
            self.stale_age.clone(),
        );
        registry.register(
            "larder_wrong_blobs_aborted",
            "Blobs that turned out wrong after their first bytes had gone out, taken back from containerd",
            self.poisoned.clone(),
        );
        registry.register(
            "larder_tag_disagreements",
            "Tags of which a mirror said something else than the registry itself",
            self.disagreements.clone(),
        );
        registry.register(
            "larder_private_outage_permits",
            "Private content given because its credentials had opened it before, while the registry could not be asked",
            self.outage_permits.clone(),
        );
    }

    /// Bytes given to callers from this source so far.
    #[must_use]
    pub fn served_from(&self, source: &'static str) -> u64 {
        self.served.get(&SourceLabel { source }).map_or(0, |counter| counter.get())
    }

    pub(super) fn served(&self, source: &'static str, bytes: u64) {
        self.served.get_or_create(&SourceLabel { source }).inc_by(bytes);
    }

    /// As [`ORIGINS`] has them.
    pub(super) fn received(&self, bytes: [u64; ORIGINS.len()]) {
        for (source, bytes) in ORIGINS.into_iter().zip(bytes) {
            if bytes > 0 {
                self.received.get_or_create(&SourceLabel { source }).inc_by(bytes);
            }
        }
    }

    pub(super) fn transfer_ended(&self, result: &'static str) {
        self.transfers.get_or_create(&ResultLabel { result }).inc();
    }

    pub(super) fn tag_answered(&self, result: &'static str) {
        self.tags.get_or_create(&ResultLabel { result }).inc();
    }

    pub(super) fn tag_stale(&self, age: std::time::Duration) {
        self.tag_answered("stale");
        self.stale_age.set(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
    }
}
