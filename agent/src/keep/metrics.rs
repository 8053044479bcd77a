use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Catalog, Why};
use crate::store::Reason;

/// What is counted of keeping. Cheap clones of the same counters.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    images: Family<StateLabel, Gauge>,
    evicted: Family<ReasonLabel, Counter>,
    fetches: Family<ResultLabel, Counter>,
    pub(super) background: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    /// Enters them all.
    pub fn register(&self, registry: &mut Registry) {
        // From zero on: what first appears as 1 has never risen for Prometheus.
        for reason in ["max_bytes", "max_disk_percent", "full", "expired", "unused", "released"] {
            drop(self.evicted.get_or_create(&ReasonLabel { reason }));
        }
        for result in ["whole", "failed"] {
            drop(self.fetches.get_or_create(&ResultLabel { result }));
        }
        let help =
            "Images that this node knows; in use: containers were made from them; whole: every blob of them is here";
        registry.register("larder_images", help, self.images.clone());
        registry.register("larder_images_evicted", "Images dropped from the cache, by why", self.evicted.clone());
        let help = "Images made whole in the background, and attempts at it that failed";
        registry.register("larder_background_fetches", help, self.fetches.clone());
        let help = "Bytes fetched without anybody waiting for them";
        registry.register_with_unit("larder_background", help, Unit::Bytes, self.background.clone());
    }

    pub(super) fn show(&self, catalog: &Catalog) {
        let count = |is: &dyn Fn(&super::Known) -> bool| {
            i64::try_from(catalog.images.iter().filter(|known| is(known)).count()).unwrap_or(i64::MAX)
        };
        let show = |state, count| {
            self.images.get_or_create(&StateLabel { state }).set(count);
        };
        show("known", count(&|_| true));
        show("in_use", count(&|known| known.why == Why::InUse));
        show("whole", count(&|known| known.is_whole()));
    }

    pub(super) fn evicted(&self, reason: Reason, images: u64) {
        let reason = match reason {
            Reason::MaxBytes => "max_bytes",
            Reason::MaxDiskPercent => "max_disk_percent",
            Reason::Full => "full",
            Reason::Expired => "expired",
            Reason::Unused => "unused",
            Reason::Released => "released",
        };
        self.evicted.get_or_create(&ReasonLabel { reason }).inc_by(images);
    }

    pub(super) fn fetched(&self, is_whole: bool) {
        let result = if is_whole { "whole" } else { "failed" };
        self.fetches.get_or_create(&ResultLabel { result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let (metrics, mut registry, mut text) = (Metrics::default(), Registry::default(), String::new());
        metrics.register(&mut registry);
        metrics.show(&Catalog::default());
        metrics.evicted(Reason::Expired, 2);
        metrics.fetched(true);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "larder_images{state=\"in_use\"} 0",
            "larder_images_evicted_total{reason=\"expired\"} 2",
            "larder_background_fetches_total{result=\"whole\"} 1",
            "larder_background_bytes_total 0",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
        }
    }
}
