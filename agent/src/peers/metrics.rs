use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// From half a millisecond (an owner in the same rack) to two seconds, when a pull waits no longer.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];

/// What is counted of peers. A cheap clone: all clones count together. Every label has a handful of values.
#[derive(Debug, Clone)]
pub struct PeerMetrics {
    received: Family<ZoneLabel, Counter>,
    sent: Family<ZoneLabel, Counter>,
    streams: Family<DirectionLabel, Gauge>,
    lookups: Family<AnswerLabel, Counter>,
    lookup_seconds: Histogram,
    reasks: Counter,
    leases: Family<EventLabel, Counter>,
    moves: Family<ReasonLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    blamed: Counter,
    tags: Family<AnswerLabel, Counter>,
    announced: Gauge,
    known: Gauge,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// A peer sends to us.
    In,
    /// We send to a peer.
    Out,
}

/// Where a peer stands, as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Nearness {
    /// In the same zone.
    Same,
    /// In another.
    Other,
}

impl Nearness {
    const fn label(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Other => "other",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ZoneLabel {
    zone: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabel {
    answer: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl Default for PeerMetrics {
    fn default() -> Self {
        Self {
            received: Family::default(),
            sent: Family::default(),
            streams: Family::default(),
            lookups: Family::default(),
            lookup_seconds: Histogram::new(SECONDS),
            reasks: Counter::default(),
            leases: Family::default(),
            moves: Family::default(),
            refusals: Family::default(),
            blamed: Counter::default(),
            tags: Family::default(),
            announced: Gauge::default(),
            known: Gauge::default(),
        }
    }
}

impl PeerMetrics {
    /// Enters everything, by names that start with `larder_peer_`.
    pub fn register(&self, registry: &mut Registry) {
        self.begin_at_zero();
        let registry = registry.sub_registry_with_prefix("larder_peer");
        registry.register_with_unit(
            "received",
            "Bytes of blobs received from peers, by whether they are in the same zone",
            Unit::Bytes,
            self.received.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Bytes of blobs sent to peers, by whether they are in the same zone",
            Unit::Bytes,
            self.sent.clone(),
        );
        registry.register("streams", "Blobs on their way from and to peers", self.streams.clone());
        registry.register("lookups", "Questions to owners of digests, by what they answered", self.lookups.clone());
        registry.register(
            "lookup_duration_seconds",
            "From a question to an owner's answer, which it may hold for a second",
            self.lookup_seconds.clone(),
        );
        registry.register("reasks", "Questions that were asked again", self.reasks.clone());
        registry.register(
            "leases",
            "Leases to fetch from upstream: granted, renewed, passed on or lost as an owner, held as a holder",
            self.leases.clone(),
        );
        registry.register("moves", "Readers here that left the peer that they read from, by why", self.moves.clone());
        registry.register("refusals", "Peers that were refused content here, by why", self.refusals.clone());
        registry.register("blamed", "Peers that sent what broke a digest, and are avoided for it", self.blamed.clone());
        registry.register("tag_lookups", "Questions to owners of tags, by what they answered", self.tags.clone());
        registry.register("announced_blobs", "Blobs that peers may have from here", self.announced.clone());
        registry.register(
            "directory_entries",
            "Holdings of others that are known here, as an owner",
            self.known.clone(),
        );
    }

    /// What first appears as 1 has never risen for Prometheus.
    fn begin_at_zero(&self) {
        for zone in [Nearness::Same, Nearness::Other].map(Nearness::label) {
            drop(self.received.get_or_create(&ZoneLabel { zone }));
            drop(self.sent.get_or_create(&ZoneLabel { zone }));
        }
        for direction in ["in", "out"] {
            drop(self.streams.get_or_create(&DirectionLabel { direction }));
        }
        for answer in ["fetch", "read", "not_owner", "alone", "left_alone", "failed"] {
            drop(self.lookups.get_or_create(&AnswerLabel { answer }));
        }
        for answer in ["ask", "answer", "alone"] {
            drop(self.tags.get_or_create(&AnswerLabel { answer }));
        }
        for event in ["granted", "renewed", "passed_on", "held"] {
            drop(self.leases.get_or_create(&EventLabel { event }));
        }
        for event in ["lost_absent", "lost_unauthorized", "lost_unreachable", "lost_slow"] {
            drop(self.leases.get_or_create(&EventLabel { event }));
        }
        for reason in ["slow", "other"] {
            drop(self.moves.get_or_create(&ReasonLabel { reason }));
        }
        for reason in ["absent", "failed", "full", "not_lower", "nameless"] {
            drop(self.refusals.get_or_create(&ReasonLabel { reason }));
        }
    }

    /// Counts the bytes of one stream, and the stream for as long as it is kept.
    #[must_use]
    pub fn streaming(&self, direction: Direction, nearness: Nearness) -> Streaming {
        let (bytes, label) = match direction {
            Direction::In => (&self.received, "in"),
            Direction::Out => (&self.sent, "out"),
        };
        let zone = nearness.label();
        let streams = self.streams.get_or_create(&DirectionLabel { direction: label }).clone();
        streams.inc();
        Streaming { bytes: bytes.get_or_create(&ZoneLabel { zone }).clone(), streams }
    }

    /// Bytes received from peers that stand there, so far.
    #[must_use]
    pub fn received_from(&self, nearness: Nearness) -> u64 {
        self.received.get(&ZoneLabel { zone: nearness.label() }).map_or(0, |counter| counter.get())
    }

    pub(super) fn looked_up(&self, answer: &'static str, took: Duration, again: bool) {
        self.lookups.get_or_create(&AnswerLabel { answer }).inc();
        self.lookup_seconds.observe(took.as_secs_f64());
        if again {
            self.reasks.inc();
        }
    }

    pub(super) fn tag_looked_up(&self, answer: &'static str) {
        self.tags.get_or_create(&AnswerLabel { answer }).inc();
    }

    pub(super) fn lease(&self, event: &'static str) {
        self.leases.get_or_create(&EventLabel { event }).inc();
    }

    pub(super) fn moved(&self, reason: &'static str) {
        self.moves.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A peer was refused content.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn blamed(&self) {
        self.blamed.inc();
    }

    pub(super) fn set_announced(&self, blobs: usize) {
        self.announced.set(i64::try_from(blobs).unwrap_or(i64::MAX));
    }

    pub(super) fn announced(&self) -> usize {
        usize::try_from(self.announced.get()).unwrap_or(0)
    }

    pub(super) fn set_known(&self, holdings: usize) {
        self.known.set(i64::try_from(holdings).unwrap_or(i64::MAX));
    }
}

/// One stream's figures.
#[derive(Debug)]
pub struct Streaming {
    bytes: Counter,
    streams: Gauge,
}

impl Streaming {
    /// So many bytes more.
    pub fn add(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.streams.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let metrics = PeerMetrics::default();
        let stream = metrics.streaming(Direction::In, Nearness::Same);
        stream.add(5);
        metrics.looked_up("fetch", Duration::from_millis(3), true);
        metrics.moved("slow");
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "larder_peer_received_bytes_total{zone=\"same\"} 5",
            "larder_peer_streams{direction=\"in\"} 1",
            "larder_peer_lookups_total{answer=\"fetch\"} 1",
            "larder_peer_lookup_duration_seconds_count 1",
            "larder_peer_reasks_total 1",
            "larder_peer_moves_total{reason=\"slow\"} 1",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} in {text}");
        }
        drop(stream);
        assert_eq!(metrics.streams.get_or_create(&DirectionLabel { direction: "in" }).get(), 0);
    }
}
