use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::refusal::Refusals;

/// What is counted between nodes. Cheap clones of the same figures.
#[derive(Debug, Clone, Default)]
pub struct WireMetrics {
    pub(super) refusals: Refusals,
    connections: Family<DirectionLabel, Gauge>,
    datagrams: Family<DirectionLabel, Counter>,
    datagram_bytes: Family<DirectionLabel, Counter>,
    pub(super) certificate_ends: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: Direction,
}

/// As seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelValue)]
pub(super) enum Direction {
    In,
    Out,
}

impl WireMetrics {
    /// Enters them all.
    pub fn register(&self, registry: &mut Registry) {
        // From zero on: what first appears as 1 has never risen for Prometheus.
        for direction in [Direction::In, Direction::Out] {
            let label = DirectionLabel { direction };
            drop(self.connections.get_or_create(&label));
            drop(self.datagrams.get_or_create(&label));
            drop(self.datagram_bytes.get_or_create(&label));
        }
        self.refusals.register(registry);
        registry.register(
            "larder_peer_connections",
            "Connections with peers that are open or, outwards, kept for the next call",
            self.connections.clone(),
        );
        registry.register("larder_peer_datagrams", "Datagrams of members", self.datagrams.clone());
        registry.register_with_unit(
            "larder_peer_datagram",
            "Datagrams of members as they are on the wire",
            Unit::Bytes,
            self.datagram_bytes.clone(),
        );
        registry.register_with_unit(
            "larder_peer_certificate_end_timestamp",
            "When the certificate ends that this node shows its peers",
            Unit::Seconds,
            self.certificate_ends.clone(),
        );
    }

    pub(super) fn datagram(&self, direction: Direction, bytes: usize) {
        let label = DirectionLabel { direction };
        self.datagrams.get_or_create(&label).inc();
        self.datagram_bytes.get_or_create(&label).inc_by(bytes as u64);
    }

    #[cfg(test)]
    pub(super) fn connections(&self, direction: Direction) -> i64 {
        self.connections.get_or_create(&DirectionLabel { direction }).get()
    }

    /// Counts one for as long as it is kept.
    pub(super) fn open(&self, direction: Direction) -> Open {
        let gauge = self.connections.get_or_create(&DirectionLabel { direction }).clone();
        gauge.inc();
        Open(gauge)
    }
}

/// One open connection, in the gauge.
#[derive(Debug)]
pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
