use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Applied;

/// What is counted of the entries. Cheap clones of the same figures.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    folders: Family<StateLabel, Gauge>,
    pub(super) rewrites: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

impl Metrics {
    /// Enters them all.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "larder_hosts_folders",
            "Folders of containerd's hosts, by whether our entry stands in them",
            self.folders.clone(),
        );
        registry.register(
            "larder_hosts_rewrites",
            "Entries written again because somebody had changed them",
            self.rewrites.clone(),
        );
    }

    pub(super) fn applied(&self, applied: &Applied) {
        let failed = applied.failures().count();
        let set = |state, count: usize| {
            self.folders.get_or_create(&StateLabel { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("failed", failed);
        set("applied", applied.folders.len() - failed);
    }
}
