use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// What is counted at the mirror's port. Cheap clones of the same counters.
#[derive(Debug, Clone)]
pub struct MirrorMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Histogram,
    pub(super) connections: Gauge,
    pub(super) handshakes_failed: Counter,
    pub(super) refused: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: &'static str,
    code: u16,
}

impl Default for MirrorMetrics {
    fn default() -> Self {
        let seconds = Histogram::new([0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0]);
        Self {
            requests: Family::default(),
            seconds,
            connections: Gauge::default(),
            handshakes_failed: Counter::default(),
            refused: Counter::default(),
        }
    }
}

impl MirrorMetrics {
    /// Enters them all.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "larder_mirror_requests",
            "Requests at the mirror, by kind and status",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "larder_mirror_reply_start",
            "From a request to the head of its reply",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("larder_mirror_connections", "Connections that are open", self.connections.clone());
        registry.register(
            "larder_mirror_handshakes_failed",
            "Connections that ended before they were HTTP: TLS that failed, or nothing sent in time",
            self.handshakes_failed.clone(),
        );
        registry.register(
            "larder_mirror_connections_refused",
            "Connections closed at once because too many were open",
            self.refused.clone(),
        );
    }

    pub(super) fn answered(&self, kind: &'static str, code: u16, after: Duration) {
        self.requests.get_or_create(&RequestLabels { kind, code }).inc();
        self.seconds.observe(after.as_secs_f64());
    }
}
