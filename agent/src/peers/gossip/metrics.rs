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
        for event in ["up", "down", "renewed", "twin"] {
            drop(self.events.get_or_create(&EventLabel { event }));
        }
        registry.register(
            "larder_peer_members",
            "Members of the cluster as this node sees it, itself among them: settled own buckets, joining don't yet, \
             missing were up within the last hour",
            self.members.clone(),
        );
        registry.register(
            "larder_peer_member_events",
            "Members that came up, went down or were started anew, and times this node was taken for dead or met a twin",
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

    pub(super) fn ring(&self, ring: &Ring, missing: usize) {
        let settled = ring.members().iter().filter(|member| member.settled).count();
        let joining = ring.members().len() - settled;
        for (state, count) in [("settled", settled), ("joining", joining), ("missing", missing)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.members.get_or_create(&StateLabel { state }).set(count);
        }
    }

    pub(super) fn yielded(&self, yielded: bool) {
        self.yielded.set(i64::from(yielded));
    }
}
