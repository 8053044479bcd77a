//! How fast a registry's upstreams were of late, as lease holders found.

use std::collections::HashMap;
use std::time::Duration;

use crate::image::{NodeId, Registry};

/// How long a rate counts.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The most holders remembered of a registry, and the most registries.
const MAX_HOLDERS: usize = 16;
const MAX_REGISTRIES: usize = 256;
/// So many holders must have been measured before the best of them says what is good.
const ENOUGH: usize = 3;
/// What part of the best is good.
const GOOD: f64 = 0.7;

#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<Registry, Vec<Measured>>);

#[derive(Debug)]
struct Measured {
    node: NodeId,
    rate: f64,
    at: Duration,
}

impl Rates {
    pub(super) fn measured(&mut self, now: Duration, registry: &Registry, node: NodeId, rate: f64) {
        if self.0.len() >= MAX_REGISTRIES && !self.0.contains_key(registry) {
            self.sweep(now);
            if self.0.len() >= MAX_REGISTRIES {
                return;
            }
        }
        let holders = self.0.entry(registry.clone()).or_default();
        holders.retain(|holder| holder.node != node && now.saturating_sub(holder.at) < REMEMBERED);
        if holders.len() >= MAX_HOLDERS {
            holders.remove(0);
        }
        holders.push(Measured { node, rate, at: now });
    }

    /// Is there nothing to be gained by another holder? `others`: how many might be one.
    pub(super) fn is_good(&self, now: Duration, registry: &Registry, rate: f64, others: usize) -> bool {
        let Some(holders) = self.0.get(registry) else { return others == 0 };
        let known = holders.iter().filter(|holder| now.saturating_sub(holder.at) < REMEMBERED);
        let (count, best) = known.fold((0, 0.0_f64), |(count, best), holder| (count + 1, best.max(holder.rate)));
        count >= ENOUGH.min(others + 1) && rate >= GOOD * best
    }

    /// Is this clearly less than what others had?
    pub(super) fn is_poor(&self, now: Duration, registry: &Registry, rate: f64) -> bool {
        let holders = self.0.get(registry).map_or(&[][..], Vec::as_slice);
        holders.iter().any(|holder| now.saturating_sub(holder.at) < REMEMBERED && rate < GOOD * holder.rate)
    }

    pub(super) fn sweep(&mut self, now: Duration) {
        self.0.retain(|_, holders| {
            holders.retain(|holder| now.saturating_sub(holder.at) < REMEMBERED);
            !holders.is_empty()
        });
    }
}
