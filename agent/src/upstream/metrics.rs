use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::quota::Quota;

/// The label of upstreams that are neither configured nor well known: anybody can invent them.
pub(super) const OTHER: &str = "other";
/// What a breaker changes to.
const OPEN: &str = "open";
const CLOSED: &str = "closed";
/// Why one opens, besides the kinds of errors: another upstream answered while it said nothing; it was asked whether it is
/// there, and didn't say.
pub(super) const SILENT: &str = "silent";
pub(super) const UNANSWERED: &str = "unanswered";
/// Why one closes: what came from it.
pub(super) const ANSWER: &str = "answer";
pub(super) const BODY: &str = "body";
pub(super) const PROBE: &str = "probe";
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
    up: Family<UpstreamLabel, Gauge>,
    down_since: Family<UpstreamLabel, Gauge>,
    rests_until: Family<UpstreamLabel, Gauge>,
    transitions: Family<TransitionLabels, Counter>,
    races_lost: Family<UpstreamLabel, Counter>,
    quota_limit: Family<UpstreamLabel, Gauge>,
    quota_remaining: Family<UpstreamLabel, Gauge>,
    authorities: Family<SourceLabel, Gauge>,
    /// How many upstreams with the same label are down: several registries may have the same mirror.
    down: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    /// Bytes of bodies from all of them.
    received_in_all: Arc<AtomicU64>,
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    upstream: Arc<str>,
    to: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
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
            up: Family::default(),
            down_since: Family::default(),
            rests_until: Family::default(),
            transitions: Family::default(),
            races_lost: Family::default(),
            quota_limit: Family::default(),
            quota_remaining: Family::default(),
            authorities: Family::default(),
            down: Arc::default(),
            received_in_all: Arc::default(),
        }
    }

    /// So many certificate authorities are believed: the host's, or those that are built in.
    pub(super) fn authorities(&self, is_host: bool, count: usize) {
        for (source, is_used) in [("host", is_host), ("bundled", !is_host)] {
            let count = if is_used { i64::try_from(count).unwrap_or(i64::MAX) } else { 0 };
            self.authorities.get_or_create(&SourceLabel { source }).set(count);
        }
    }

    /// Enters the metrics, whose names start with `larder_upstream`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "larder_upstream_authorities",
            "Certificate authorities that are believed, by source: host, or bundled where the host's can't be read",
            self.authorities.clone(),
        );
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
        registry.register(
            "larder_upstream_up",
            "1 while its breaker is closed; 0 while it is asked after the others, and probed",
            self.up.clone(),
        );
        registry.register(
            "larder_upstream_breaker_transitions",
            "Changes of breakers, by what they changed to and why: open by the kind of error, silent (another answered \
             first) or unanswered (a probe); closed by an answer, a whole body or a probe",
            self.transitions.clone(),
        );
        registry.register(
            "larder_upstream_down_since_timestamp_seconds",
            "Since when its breaker is open, in seconds since 1970; 0 while it is closed",
            self.down_since.clone(),
        );
        registry.register(
            "larder_upstream_rests_until_timestamp_seconds",
            "Until when it is left alone, since it said \"too many requests\", in seconds since 1970; 0 if it never did",
            self.rests_until.clone(),
        );
        registry.register(
            "larder_upstream_races_lost",
            "Requests that were slow, and that another upstream answered first",
            self.races_lost.clone(),
        );
        registry.register(
            "larder_upstream_ratelimit_limit",
            "The registry's quota on this node, in pulls, as it last said",
            self.quota_limit.clone(),
        );
        registry.register(
            "larder_upstream_ratelimit_remaining",
            "What is left of the registry's quota on this node, in pulls, as it last said",
            self.quota_remaining.clone(),
        );
    }

    /// Bytes of bodies received from all upstreams so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received_in_all.load(Ordering::Relaxed)
    }

    /// The figures of an upstream at this host and port.
    pub(super) fn of(&self, authority: &str, is_configured: bool) -> Meter {
        let label: Arc<str> = if is_configured || WELL_KNOWN.contains(&authority) { authority } else { OTHER }.into();
        let upstream = UpstreamLabel { upstream: Arc::clone(&label) };
        if *label != *OTHER && !self.down.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&label) {
            self.up.get_or_create(&upstream).set(1);
            drop(self.down_since.get_or_create(&upstream));
            drop(self.rests_until.get_or_create(&upstream));
        }
        // From zero on: what first appears as 1 has never risen for Prometheus.
        let of = |result| ResultLabels { upstream: Arc::clone(&label), result };
        drop(self.requests.get_or_create(&of("ok")));
        drop(self.tokens.get_or_create(&of("ok")));
        drop(self.races_lost.get_or_create(&upstream));
        for (to, reasons) in [(OPEN, &["refused", "timeout", "server", SILENT][..]), (CLOSED, &[ANSWER, PROBE])] {
            for reason in reasons {
                drop(self.transitions.get_or_create(&TransitionLabels { upstream: Arc::clone(&label), to, reason }));
            }
        }
        for kind in ["refused", "timeout", "server", "rate_limited"] {
            drop(self.errors.get_or_create(&KindLabels { upstream: Arc::clone(&label), kind }));
        }
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
        self.all.received_in_all.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn token(&self, result: &'static str) {
        self.all.tokens.get_or_create(&ResultLabels { upstream: Arc::clone(&self.label), result }).inc();
    }

    pub(super) fn lost_race(&self) {
        self.all.races_lost.get_or_create(&self.label()).inc();
    }

    /// `reason`: the kind of error, [`SILENT`] or [`UNANSWERED`].
    pub(super) fn opened(&self, reason: &'static str) {
        self.transition(OPEN, reason);
        self.count_down(|down| down + 1);
    }

    /// `reason`: [`ANSWER`], [`BODY`] or [`PROBE`].
    pub(super) fn closed(&self, reason: &'static str) {
        self.transition(CLOSED, reason);
        self.gone();
    }

    /// It is left alone until then. Of several with one label, the last to be asked again counts.
    pub(super) fn rests(&self, until: Timestamp) {
        if *self.label != *OTHER {
            let rests_until = self.all.rests_until.get_or_create(&self.label());
            rests_until.inner().fetch_max(until.as_second(), Ordering::Relaxed);
        }
    }

    /// One that is down is no more.
    pub(super) fn gone(&self) {
        self.count_down(|down| down.saturating_sub(1));
    }

    /// Nothing for those that share a label: one's quota is not another's.
    pub(super) fn quota(&self, quota: Quota) {
        if *self.label != *OTHER {
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            self.all.quota_limit.get_or_create(&self.label()).set(number(quota.limit));
            self.all.quota_remaining.get_or_create(&self.label()).set(number(quota.remaining));
        }
    }

    fn transition(&self, to: &'static str, reason: &'static str) {
        let labels = TransitionLabels { upstream: Arc::clone(&self.label), to, reason };
        self.all.transitions.get_or_create(&labels).inc();
    }

    fn count_down(&self, change: impl Fn(usize) -> usize) {
        if *self.label == *OTHER {
            return;
        }
        let mut all = self.all.down.lock().unwrap_or_else(PoisonError::into_inner);
        let down = all.entry(Arc::clone(&self.label)).or_default();
        let before = std::mem::replace(down, change(*down));
        self.all.up.get_or_create(&self.label()).set(i64::from(*down == 0));
        match (before, *down) {
            (_, 0) => {
                self.all.down_since.get_or_create(&self.label()).set(0);
            }
            (0, _) => {
                self.all.down_since.get_or_create(&self.label()).set(Timestamp::now().as_second());
            }
            _ => {}
        }
    }

    fn label(&self) -> UpstreamLabel {
        UpstreamLabel { upstream: Arc::clone(&self.label) }
    }
}
