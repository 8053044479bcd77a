use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::cluster::Ring;

/// What is counted of the members. Cheap clones of the same figures.
#[derive(Debug, Clone, Default)]
pub struct GossipMetrics {
    members: Family<StateLabel, Gauge>,
    events: Family<EventLabel, Counter>,
    yielded: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: &'static str,
}

impl GossipMetrics {
    /// Enters them all.
    pub fn register(&self, registry: &mut Registry) {
        // From zero on: what first appears as 1 has never risen for Prometheus.
        for event in ["up", "left", "down", "renewed", "moved", "twin"] {
            drop(self.events.get_or_create(&EventLabel { event }));
        }
        registry.register(
            "larder_peer_members",
            "Members of the cluster as this node sees it, itself among them: settled own buckets, joining don't yet, \
             missing were up within the last hour and went without a word",
            self.members.clone(),
        );
        registry.register(
            "larder_peer_member_events",
            "Members that came up, left, went down, moved or were started anew, and times this node was taken for dead or \
             met a twin",
            self.events.clone(),
        );
        registry.register(
            "larder_peer_yielded",
            "1 while this node is no member because another one has its number, from a disk that was cloned",
            self.yielded.clone(),
        );
    }

    pub(super) fn event(&self, event: &'static str) {
        self.events.get_or_create(&EventLabel { event }).inc();
    }

    pub(super) fn ring(&self, ring: &Ring) {
        let settled = ring.members().iter().filter(|member| member.settled).count();
        self.set("settled", settled);
        self.set("joining", ring.members().len() - settled);
    }

    pub(super) fn missing(&self, missing: usize) {
        self.set("missing", missing);
    }

    fn set(&self, state: &'static str, count: usize) {
        self.members.get_or_create(&StateLabel { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    #[cfg(test)]
    pub(super) fn members(&self, state: &'static str) -> Option<i64> {
        self.members.get(&StateLabel { state }).map(|gauge| gauge.get())
    }

    pub(super) fn yielded(&self, yielded: bool) {
        self.yielded.set(i64::from(yielded));
    }
}
