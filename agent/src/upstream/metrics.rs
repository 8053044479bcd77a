use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The label of upstreams that are neither configured nor well known: anybody can invent them.
pub(super) const OTHER: &str = "other";
/// Upstreams that get a label of their own without being configured.
const WELL_KNOWN: [&str; 11] = [
    "registry-1.docker.io",
    "quay.io",
    "ghcr.io",
    "registry.k8s.io",
    "gcr.io",
    "public.ecr.aws",
    "mcr.microsoft.com",
    "registry.gitlab.com",
    "docker.elastic.co",
    "nvcr.io",
    "lscr.io",
];
/// From 5 ms (a registry in the same room) to 20 s (beyond every deadline).
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

/// What is counted about upstreams. The label `upstream` is the host of a configured or well-known one, or `other`.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<ResultLabels, Counter>,
    durations: Family<UpstreamLabel, Histogram, fn() -> Histogram>,
    errors: Family<KindLabels, Counter>,
    received: Family<UpstreamLabel, Counter>,
    tokens: Family<ResultLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    upstream: Arc<str>,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    upstream: Arc<str>,
    kind: &'static str,
}

/// The figures of one upstream.
#[derive(Debug)]
pub(super) struct Meter {
    label: Arc<str>,
    received: Counter,
    duration: Histogram,
    all: Metrics,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(histogram),
            errors: Family::default(),
            received: Family::default(),
            tokens: Family::default(),
        }
    }

    /// Enters the metrics, whose names start with `larder_upstream`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "larder_upstream_requests",
            "Requests to upstreams, by result: ok, or the kind of error",
            self.requests.clone(),
        );
        registry.register(
            "larder_upstream_request_duration_seconds",
            "From a request to the head of its answer, tokens and redirects included",
            self.durations.clone(),
        );
        registry.register(
            "larder_upstream_errors",
            "Requests that got no answer and bodies that did not end well, by kind",
            self.errors.clone(),
        );
        registry.register(
            "larder_upstream_received_bytes",
            "Bytes of bodies received from upstreams",
            self.received.clone(),
        );
        registry.register(
            "larder_upstream_token_fetches",
            "Requests to token servers, by result: ok, or the kind of error",
            self.tokens.clone(),
        );
    }

    /// The figures of an upstream at this host and port.
    pub(super) fn of(&self, authority: &str, is_configured: bool) -> Meter {
        let label: Arc<str> = if is_configured || WELL_KNOWN.contains(&authority) { authority } else { OTHER }.into();
        let upstream = UpstreamLabel { upstream: Arc::clone(&label) };
        Meter {
            received: self.received.get_or_create_owned(&upstream),
            duration: self.durations.get_or_create_owned(&upstream),
            label,
            all: self.clone(),
        }
    }
}

impl Meter {
    pub(super) fn request(&self, result: &'static str) {
        self.all.requests.get_or_create(&ResultLabels { upstream: Arc::clone(&self.label), result }).inc();
    }

    pub(super) fn head(&self, seconds: f64) {
        self.duration.observe(seconds);
    }

    pub(super) fn error(&self, kind: &'static str) {
        self.all.errors.get_or_create(&KindLabels { upstream: Arc::clone(&self.label), kind }).inc();
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }

    pub(super) fn token(&self, result: &'static str) {
        self.all.tokens.get_or_create(&ResultLabels { upstream: Arc::clone(&self.label), result }).inc();
    }
}
