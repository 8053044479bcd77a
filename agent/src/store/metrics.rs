use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::adopt::Adopted;
use super::bounds::{DiskUse, Reason};
use super::index::Totals;

/// What Prometheus sees of the store. A cheap clone: all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    blobs: Gauge,
    bytes: Gauge,
    shared_bytes: Gauge,
    writable: Gauge,
    disk_size: Gauge,
    disk_used: Gauge,
    disk_mark: Gauge,
    evicted_bytes: Counter,
    evictions: Family<EvictionLabels, Counter>,
    adoptions: Family<AdoptionLabels, Counter>,
    pub(super) adoptions_wrong: Counter,
    pub(super) scrubbed_bytes: Counter,
    pub(super) rotten: Counter,
    pub(super) rechecked: Counter,
    pub(super) index_failures: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EvictionLabels {
    reason: ReasonLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the variant's name is the label's value")]
enum ReasonLabel {
    max_bytes,
    max_disk_percent,
    full,
    expired,
    unused,
    released,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdoptionLabels {
    how: HowLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the variant's name is the label's value")]
enum HowLabel {
    linked,
    reflinked,
    left_in_place,
}

impl Metrics {
    /// Enters everything, by names that start with `larder_store_`.
    pub fn register(&self, registry: &mut Registry) {
        // From zero on: what first appears as 1 has never risen for Prometheus.
        for reason in [
            ReasonLabel::max_bytes,
            ReasonLabel::max_disk_percent,
            ReasonLabel::full,
            ReasonLabel::expired,
            ReasonLabel::unused,
            ReasonLabel::released,
        ] {
            drop(self.evictions.get_or_create(&EvictionLabels { reason }));
        }
        for how in [HowLabel::linked, HowLabel::reflinked, HowLabel::left_in_place] {
            drop(self.adoptions.get_or_create(&AdoptionLabels { how }));
        }
        let registry = registry.sub_registry_with_prefix("larder_store");
        registry.register("blobs", "Blobs held", self.blobs.clone());
        registry.register("bytes", "Bytes of the blobs held that dropping them would free", self.bytes.clone());
        registry.register("shared_bytes", "Bytes of the blobs held that containerd has too", self.shared_bytes.clone());
        registry.register("writable", "1 while blobs can be stored, else 0", self.writable.clone());
        registry.register("disk_size_bytes", "Size of the store's disk", self.disk_size.clone());
        registry.register("disk_used_bytes", "Bytes used on the store's disk, by whomever", self.disk_used.clone());
        let mark = "Bytes used on the store's disk, by whomever, above which the store gives up what it can";
        registry.register("disk_mark_bytes", mark, self.disk_mark.clone());
        registry.register("evicted_bytes", "Bytes freed by dropping blobs", self.evicted_bytes.clone());
        registry.register("evictions", "Blobs dropped, by why", self.evictions.clone());
        registry.register("adoptions", "Blobs taken over from containerd without a copy", self.adoptions.clone());
        let wrong = "Files of containerd's that were not what their names say";
        registry.register("adoptions_wrong", wrong, self.adoptions_wrong.clone());
        registry.register("scrubbed_bytes", "Bytes read to look for damage", self.scrubbed_bytes.clone());
        registry.register("rotten", "Blobs found damaged on disk and set aside", self.rotten.clone());
        registry.register("rechecked", "Blobs hashed whole to prove them: after a crash or where the index didn't know them, and by `larder cache verify`", self.rechecked.clone());
        registry.register("index_failures", "Writes of the index that failed", self.index_failures.clone());
    }

    pub(super) fn set_held(&self, totals: &Totals) {
        self.blobs.set(signed(totals.blobs));
        self.bytes.set(signed(totals.bytes));
        self.shared_bytes.set(signed(totals.shared_bytes));
    }

    pub(super) fn count_adoption(&self, adopted: Adopted) {
        let how = match adopted {
            Adopted::Linked => HowLabel::linked,
            Adopted::Reflinked => HowLabel::reflinked,
            Adopted::LeftInPlace => HowLabel::left_in_place,
            Adopted::Already => return,
        };
        self.adoptions.get_or_create(&AdoptionLabels { how }).inc();
    }

    pub(super) fn set_writable(&self, writable: bool) {
        self.writable.set(writable.into());
    }

    /// `mark`: how much of it may be used, in bytes.
    pub(super) fn set_disk(&self, disk: DiskUse, mark: u64) {
        self.disk_size.set(signed(disk.size));
        self.disk_used.set(signed(disk.used));
        self.disk_mark.set(signed(mark));
    }

    pub(super) fn count_eviction(&self, reason: Reason, bytes: u64) {
        let reason = match reason {
            Reason::MaxBytes => ReasonLabel::max_bytes,
            Reason::MaxDiskPercent => ReasonLabel::max_disk_percent,
            Reason::Full => ReasonLabel::full,
            Reason::Expired => ReasonLabel::expired,
            Reason::Unused => ReasonLabel::unused,
            Reason::Released => ReasonLabel::released,
        };
        self.evictions.get_or_create(&EvictionLabels { reason }).inc();
        self.evicted_bytes.inc_by(bytes);
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let metrics = Metrics::default();
        metrics.set_held(&Totals { blobs: 2, bytes: 300, shared_bytes: 40 });
        metrics.count_adoption(Adopted::LeftInPlace);
        metrics.set_writable(true);
        metrics.set_disk(DiskUse { size: 1000, used: 400 }, 750);
        metrics.count_eviction(Reason::MaxDiskPercent, 50);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "larder_store_blobs 2",
            "larder_store_bytes 300",
            "larder_store_shared_bytes 40",
            "larder_store_adoptions_total{how=\"left_in_place\"} 1",
            "larder_store_adoptions_wrong_total 0",
            "larder_store_scrubbed_bytes_total 0",
            "larder_store_writable 1",
            "larder_store_disk_size_bytes 1000",
            "larder_store_disk_used_bytes 400",
            "larder_store_disk_mark_bytes 750",
            "larder_store_evicted_bytes_total 50",
            "larder_store_evictions_total{reason=\"max_disk_percent\"} 1",
            "larder_store_rotten_total 0",
            "larder_store_rechecked_total 0",
            "larder_store_index_failures_total 0",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} in {text}");
        }
    }
}
