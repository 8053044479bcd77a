use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use super::findings::age;
use super::report::{ImageHealth, Report, Status};
use crate::image;
use crate::peers::Grants;

/// Images that have series of their own. Of what is beyond, there are only counts.
const MOST_IMAGES: usize = 1_000;
/// Registries that have a label of their own.
const MOST_REGISTRIES: usize = 100;
/// The label of all others.
const OTHER: &str = "other";
/// From 10 ms (a registry in the same room) to 20 s (beyond any usual timeout).
const SECONDS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
/// From a minute to a week.
const AGES: [f64; 9] = [60.0, 600.0, 1_800.0, 3_600.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0, 604_800.0];

/// A name, what it says, and what it is of an image.
type Flag = (&'static str, &'static str, fn(&ImageHealth) -> i64);

/// What Prometheus sees of the images that run, and of the checks of them. A cheap clone.
#[derive(Debug, Clone)]
pub struct HealthMetrics {
    report: watch::Receiver<Arc<Report>>,
    grants: Grants,
    counts: Counts,
}

/// What is counted of checks.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    checks: Family<CheckLabels, Counter>,
    durations: Family<RegistryLabel, Histogram, fn() -> Histogram>,
    named: Arc<Mutex<HashMap<image::Registry, Arc<str>>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    registry: Arc<str>,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryLabel {
    registry: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ImageLabel {
    image: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    image: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

impl HealthMetrics {
    pub(super) const fn new(report: watch::Receiver<Arc<Report>>, grants: Grants, counts: Counts) -> Self {
        Self { report, grants, counts }
    }

    /// Enters the metrics, whose names start with `larder_image`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "larder_image_checks",
            "Checks of images at their upstreams by this node, by what they came to",
            self.counts.checks.clone(),
        );
        registry.register_with_unit(
            "larder_image_check_duration",
            "From a check's request to the upstream's answer",
            Unit::Seconds,
            self.counts.durations.clone(),
        );
        registry.register_collector(Box::new(self.clone()));
    }

    fn images(&self, report: &Report, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let named = &report.images[..report.images.len().min(MOST_IMAGES)];
        let of = |image: &ImageHealth| ImageLabel { image: image.name.to_string() };
        let flags: [Flag; 4] = [
            (
                "larder_image_protected",
                "1 if it could be pulled here if its registry died now: all of it is held in the cluster, and its next pull would be permitted",
                |image| i64::from(image.verdict.protected),
            ),
            ("larder_image_copies", "Nodes that have all of it", |image| i64::from(image.verdict.copies)),
            (
                "larder_image_drifted",
                "1 if its tag means another digest at its registry than the one that runs",
                |image| i64::from(image.verdict.drifted),
            ),
            ("larder_image_lost", "1 if no upstream has it, and no node has all of it", |image| {
                i64::from(image.verdict.lost)
            }),
        ];
        for (name, help, value) in flags {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for image in named {
                ConstGauge::new(value(image)).encode(metric.encode_family(&of(image))?)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "larder_image_status",
            "1 for what its upstreams said of it last, by status: the best of them",
            None,
            MetricType::Gauge,
        )?;
        for image in named {
            let labels = StatusLabels { image: image.name.to_string(), status: image.status().as_str() };
            ConstGauge::new(1_i64).encode(metric.encode_family(&labels)?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "larder_image_last_check_timestamp",
            "When the state of one of its upstreams was last found out, in seconds since 1970",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for image in named {
            if let Some(at) = last_check(image) {
                ConstGauge::new(at.as_second()).encode(metric.encode_family(&of(image))?)?;
            }
        }
        Ok(())
    }

    fn totals(&self, report: &Report, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "larder_images_watched",
            "Images that are watched, by status",
            None,
            MetricType::Gauge,
        )?;
        for status in Status::ALL {
            let count = report.images.iter().filter(|image| image.status() == status).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(metric.encode_family(&StatusLabel { status: status.as_str() })?)?;
        }
        let now = Timestamp::now();
        let ages = Histogram::new(AGES);
        for at in report.images.iter().filter_map(|image| last_check(image)) {
            ages.observe(age(now, at).as_secs_f64());
        }
        let metric = encoder.encode_descriptor(
            "larder_image_check_age",
            "How long ago each image's state was last found out",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        ages.encode(metric)
    }

    fn budgets(&self, report: &Report, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let registries: BTreeSet<_> = report.images.iter().map(|image| &image.name.registry).collect();
        let budgets: Vec<_> = registries
            .into_iter()
            .take(MOST_REGISTRIES)
            .filter_map(|registry| {
                Some((RegistryLabel { registry: registry.as_str().into() }, self.grants.used(registry)?))
            })
            .collect();
        let mut metric = encoder.encode_descriptor(
            "larder_image_check_budget_limit",
            "Checks of a registry that may be made in an interval, on the node that grants them",
            None,
            MetricType::Gauge,
        )?;
        for (labels, (_, limit)) in &budgets {
            ConstGauge::new(i64::from(*limit)).encode(metric.encode_family(labels)?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "larder_image_check_budget_used",
            "Checks of a registry that were granted in the last interval, on the node that grants them",
            None,
            MetricType::Gauge,
        )?;
        for (labels, (used, _)) in &budgets {
            ConstGauge::new(i64::try_from(*used).unwrap_or(i64::MAX)).encode(metric.encode_family(labels)?)?;
        }
        Ok(())
    }
}

/// What is true when it is asked for: what isn't watched any more leaves no series behind.
impl Collector for HealthMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let report = self.report.borrow().clone();
        self.images(&report, &mut encoder)?;
        self.totals(&report, &mut encoder)?;
        self.budgets(&report, &mut encoder)
    }
}

fn last_check(image: &ImageHealth) -> Option<Timestamp> {
    image.checks.iter().filter_map(|check| check.at).max()
}

impl Default for Counts {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        Self { checks: Family::default(), durations: Family::new_with_constructor(histogram), named: Arc::default() }
    }
}

impl Counts {
    pub(super) fn checked(&self, registry: &image::Registry, status: Status, took: Duration) {
        let registry = self.label(registry);
        self.durations.get_or_create(&RegistryLabel { registry: Arc::clone(&registry) }).observe(took.as_secs_f64());
        self.checks.get_or_create(&CheckLabels { registry, status: status.as_str() }).inc();
    }

    fn label(&self, registry: &image::Registry) -> Arc<str> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() >= MOST_REGISTRIES && !named.contains_key(registry) {
            return OTHER.into();
        }
        Arc::clone(named.entry(registry.clone()).or_insert_with(|| registry.as_str().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Check, Verdict};
    use super::*;
    use crate::config;
    use crate::image::Digest;

    fn image(n: usize) -> Arc<ImageHealth> {
        let check = Check {
            upstream: "https://reg.test".to_owned(),
            status: Status::Available,
            at: Some(Timestamp::now()),
            available_at: None,
            digest: None,
            remark: None,
        };
        let verdict = Verdict { protected: true, copies: 2, drifted: n == 0, lost: false };
        let name = format!("reg.test/app:v{n:04}").parse().unwrap();
        Arc::new(ImageHealth { name, target: Digest::of(b"x"), checks: vec![check], verdict })
    }

    #[tokio::test]
    async fn series_are_bounded_and_those_of_the_past_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(crate::store::Options {
            dir: dir.path().to_owned(),
            max_bytes: None,
            max_disk_percent: config::Percent::new(100).unwrap(),
            sync_after: Duration::ZERO,
        })
        .unwrap();
        let report = watch::Sender::new(Arc::new(Report { images: (0..1_500).map(image).collect() }));
        let grants = Grants::alone(store, config::Health::default());
        let metrics = HealthMetrics::new(report.subscribe(), grants, Counts::default());
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.counts.checked(&"reg.test".parse().unwrap(), Status::NotFound, Duration::from_millis(30));
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let first = text();
        for line in [
            "larder_image_status{image=\"reg.test/app:v0000\",status=\"Available\"} 1",
            "larder_image_protected{image=\"reg.test/app:v0000\"} 1",
            "larder_image_copies{image=\"reg.test/app:v0000\"} 2",
            "larder_image_drifted{image=\"reg.test/app:v0000\"} 1",
            "larder_images_watched{status=\"Available\"} 1500",
            "larder_images_watched{status=\"Unreachable\"} 0",
            "larder_image_check_age_seconds_count 1500",
            "larder_image_check_age_seconds_bucket{le=\"60.0\"} 1500",
            "larder_image_checks_total{registry=\"reg.test\",status=\"NotFound\"} 1",
            "larder_image_check_duration_seconds_count{registry=\"reg.test\"} 1",
            "larder_image_check_budget_limit{registry=\"reg.test\"} 25",
            "larder_image_check_budget_used{registry=\"reg.test\"} 0",
        ] {
            assert!(first.lines().any(|there| there == line), "{line} isn't in\n{first}");
        }
        assert!(first.contains("larder_image_last_check_timestamp_seconds{image=\"reg.test/app:v0000\"} "));
        assert_eq!(first.matches("larder_image_status{").count(), 1_000);
        report.send_replace(Arc::default());
        assert!(!text().contains("reg.test/app"));
    }
}
