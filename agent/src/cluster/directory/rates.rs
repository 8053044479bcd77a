//! How fast a registry's upstreams were of late, as lease holders found.

use std::collections::HashMap;
use std::time::Duration;

use crate::image::{NodeId, Registry};

/// How long a rate counts.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The most holders remembered of a registry, and the most registries.
const MAX_HOLDERS: usize = 16;
const MAX_REGISTRIES: usize = 256;
/// So many holders must have been measured before the best of them says what is good; and so many are enough up to this
/// byte of a blob. Each more costs a pause, which little that is left doesn't make up for; where much is left, two that
/// are slow by chance would cost more.
const ENOUGH: usize = 3;
const ENOUGH_AT_FIRST: usize = 2;
const AT_FIRST: u64 = 64 << 20;
/// What part of the best is good, and below what part nobody has to look for long.
const GOOD: f64 = 0.7;
const VERY_POOR: f64 = 0.4;

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

    /// Is there nothing to be gained by another holder? `at`: the byte that it has come to. `others`: how many might be
    /// one.
    pub(super) fn is_good(&self, now: Duration, registry: &Registry, rate: f64, at: u64, others: usize) -> bool {
        let Some(holders) = self.0.get(registry) else { return others == 0 };
        let known = holders.iter().filter(|holder| now.saturating_sub(holder.at) < REMEMBERED);
        let (count, best) = known.fold((0, 0.0_f64), |(count, best), holder| (count + 1, best.max(holder.rate)));
        let enough = if at < AT_FIRST { ENOUGH_AT_FIRST } else { ENOUGH };
        count >= enough.min(others + 1) && rate >= GOOD * best
    }

    /// Is this clearly less than what others had?
    pub(super) fn is_poor(&self, now: Duration, registry: &Registry, rate: f64) -> bool {
        self.is_below(now, registry, rate, GOOD)
    }

    /// Is it so much less that a beginning that took its time doesn't explain it?
    pub(super) fn is_very_poor(&self, now: Duration, registry: &Registry, rate: f64) -> bool {
        self.is_below(now, registry, rate, VERY_POOR)
    }

    fn is_below(&self, now: Duration, registry: &Registry, rate: f64, part: f64) -> bool {
        let holders = self.0.get(registry).map_or(&[][..], Vec::as_slice);
        holders.iter().any(|holder| now.saturating_sub(holder.at) < REMEMBERED && rate < part * holder.rate)
    }

    pub(super) fn sweep(&mut self, now: Duration) {
        self.0.retain(|_, holders| {
            holders.retain(|holder| now.saturating_sub(holder.at) < REMEMBERED);
            !holders.is_empty()
        });
    }
}
