use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::verdict::{Report, Verdict};

/// What Prometheus sees of the canary.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    success: Gauge,
    last_run: Gauge<f64, AtomicU64>,
    runs: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        // From zero on: what first appears as 1 has never risen for Prometheus.
        for result in ["used", "failing", "unused", "unknown"] {
            drop(self.runs.get_or_create(&[("result", result)]));
        }
        registry.register(
            "larder_canary_success",
            "Whether containerd came to the mirror with the last canary pull and the pull succeeded (1), or not (0)",
            self.success.clone(),
        );
        registry.register(
            "larder_canary_last_run_timestamp_seconds",
            "When the last canary pull ended, in seconds since 1970",
            self.last_run.clone(),
        );
        registry.register(
            "larder_canary_runs",
            "Canary pulls by result: used, failing (came to us, then failed), unused, unknown (could not be asked)",
            self.runs.clone(),
        );
    }

    pub(super) fn ran(&self, report: &Report) {
        self.success.set(i64::from(report.verdict == Verdict::Used));
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit for millions of years")]
        self.last_run.set(report.at as f64);
        self.runs.get_or_create(&[("result", report.verdict.word())]).inc();
    }
}
