//! When peers last said anything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::owner::held;
use crate::image::NodeId;

/// Each peer that something is read from, and when anything came from it, on whatever stream: what comes on one of many
/// lies behind what comes on the others, and a peer that sends isn't dead.
#[derive(Debug, Default)]
pub(super) struct Pulses(Mutex<HashMap<NodeId, Pulse>>);

/// One of them, for who reads from it. In milliseconds, as the machines count time; zero: nothing yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulse(Arc<AtomicU64>);

impl Pulses {
    /// For a stream that begins.
    pub(super) fn of(&self, node: NodeId) -> Pulse {
        let mut pulses = held(&self.0);
        // Those that nobody reads from any more.
        pulses.retain(|_, pulse| Arc::strong_count(&pulse.0) > 1);
        pulses.entry(node).or_default().clone()
    }

    /// When something came from `node`, if anything is read from it.
    pub(super) fn last(&self, node: NodeId) -> Option<Duration> {
        let beat = held(&self.0).get(&node)?.0.load(Ordering::Relaxed);
        (beat > 0).then(|| Duration::from_millis(beat))
    }
}

impl Pulse {
    /// Something came.
    pub(super) fn beats(&self, now: Duration) {
        self.0.fetch_max(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_stream_brings_is_known_to_all_of_that_peer() {
        let pulses = Pulses::default();
        let (one, other) = (NodeId::new([1; 16]), NodeId::new([2; 16]));
        let (first, second) = (pulses.of(one), pulses.of(one));
        assert_eq!(pulses.last(one), None, "nothing has come");
        first.beats(Duration::from_secs(5));
        second.beats(Duration::from_secs(3));
        assert_eq!((pulses.last(one), pulses.last(other)), (Some(Duration::from_secs(5)), None));
        drop((first, second));
        let _other = pulses.of(other);
        assert_eq!(pulses.last(one), None, "nobody reads from it");
    }
}
