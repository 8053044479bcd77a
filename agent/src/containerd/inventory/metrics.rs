use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Inventory;
use crate::containerd::client::Happening;

type By<const N: usize> = [(&'static str, &'static str); N];

/// What Prometheus sees of the inventory. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    connected: Gauge,
    listings: Family<By<1>, Counter>,
    events: Family<By<1>, Counter>,
    confirmed: Gauge<f64, AtomicU64>,
    images: Gauge,
    blobs: Gauge,
    bytes: Gauge,
}

impl Metrics {
    /// Enters `larder_containerd_…` into the registry of metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "larder_containerd_connected",
            "Whether containerd answers and its events are followed (1), or not (0)",
            self.connected.clone(),
        );
        registry.register(
            "larder_containerd_listings",
            "Listings asked of containerd by result: ok, failed",
            self.listings.clone(),
        );
        registry.register(
            "larder_containerd_events",
            "Events that came from containerd, by what they were about: image, container, task, content, namespace",
            self.events.clone(),
        );
        registry.register(
            "larder_containerd_last_listing_timestamp_seconds",
            "When containerd was last listed in full, in seconds since 1970",
            self.confirmed.clone(),
        );
        registry.register(
            "larder_containerd_images",
            "Images that containerd has or that its containers were made from",
            self.images.clone(),
        );
        registry.register("larder_containerd_content_blobs", "Blobs that containerd holds", self.blobs.clone());
        registry.register(
            "larder_containerd_content_bytes",
            "Bytes of the blobs that containerd holds",
            self.bytes.clone(),
        );
    }

    pub(super) fn connected(&self, is_connected: bool) {
        self.connected.set(i64::from(is_connected));
    }

    pub(super) fn listed(&self, is_ok: bool) {
        self.listings.get_or_create(&[("result", if is_ok { "ok" } else { "failed" })]).inc();
    }

    pub(super) fn confirmed(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.confirmed.set(now.as_secs_f64());
    }

    pub(super) fn heard(&self, what: &Happening) {
        let about = match what {
            Happening::Image => "image",
            Happening::Container => "container",
            Happening::Started(_) | Happening::Ended(_) => "task",
            Happening::Content => "content",
            Happening::Namespace => "namespace",
        };
        self.events.get_or_create(&[("about", about)]).inc();
    }

    pub(super) fn shows(&self, inventory: &Inventory) {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.images.set(signed(inventory.images.len() as u64));
        self.blobs.set(signed(inventory.contents.len() as u64));
        self.bytes.set(signed(inventory.contents.values().map(|content| content.size).sum()));
    }
}
