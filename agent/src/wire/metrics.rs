use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// What is counted between nodes. Cheap clones of the same figures.
#[derive(Debug, Clone, Default)]
pub struct WireMetrics {
    refused: Family<ReasonLabel, Counter>,
    connections: Family<DirectionLabel, Gauge>,
    datagrams: Family<DirectionLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

impl WireMetrics {
    /// Enters them all.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "larder_peer_refused",
            "Connections and datagrams that were refused, by reason",
            self.refused.clone(),
        );
        registry.register("larder_peer_connections", "Connections with peers that are open", self.connections.clone());
        registry.register_with_unit(
            "larder_peer_datagram",
            "Bytes of datagrams of members",
            Unit::Bytes,
            self.datagrams.clone(),
        );
    }
}
