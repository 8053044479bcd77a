use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::peers::{Nearness, PeerMetrics};
use crate::pull::Pull;
use crate::upstream::Upstreams;

/// How long one part of the picture is.
const MINUTE: Duration = Duration::from_secs(60);
/// How many of them are kept, besides the one that runs.
const MINUTES: usize = 60;

/// Where the bytes of pulls come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The store.
    Cache,
    /// containerd's own content, where it lies.
    Containerd,
    /// Other nodes, in the same zone.
    SameZone,
    /// Other nodes, in another.
    OtherZone,
    /// A registry or its mirror.
    Upstream,
}

impl Origin {
    /// All of them, the nearest first: in this order stand the figures of a [`Minute`].
    pub const ALL: [Self; 5] = [Self::Cache, Self::Containerd, Self::SameZone, Self::OtherZone, Self::Upstream];
}

/// Bytes by origin.
pub type Bytes = [u64; Origin::ALL.len()];

/// What came in a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minute {
    /// When it ended; of the last one, now.
    pub end: Timestamp,
    /// By origin, as [`Origin::ALL`] has them.
    pub bytes: Bytes,
}

/// Where bytes came from within the last hour, minute by minute. A cheap clone.
#[derive(Clone)]
pub struct Flows(Arc<Inner>);

struct Inner {
    count: Box<dyn Fn() -> Bytes + Send + Sync>,
    past: Mutex<Past>,
}

struct Past {
    /// What was counted when the minute that runs began.
    counted: Bytes,
    minutes: VecDeque<Minute>,
}

impl Flows {
    /// Of what pulls, peers and upstreams count.
    #[must_use]
    pub fn of(pull: &Pull, peers: &PeerMetrics, upstreams: &Upstreams) -> Self {
        let (pull, peers, upstream) = (pull.metrics().clone(), peers.clone(), upstreams.metrics().clone());
        Self::counted_by(move || {
            Origin::ALL.map(|origin| match origin {
                Origin::Cache => pull.served_from("store"),
                Origin::Containerd => pull.served_from("containerd"),
                Origin::SameZone => peers.received_from(Nearness::Same),
                Origin::OtherZone => peers.received_from(Nearness::Other),
                Origin::Upstream => upstream.received(),
            })
        })
    }

    /// Of counters that only grow.
    pub fn counted_by(count: impl Fn() -> Bytes + Send + Sync + 'static) -> Self {
        let past = Past { counted: count(), minutes: VecDeque::with_capacity(MINUTES) };
        Self(Arc::new(Inner { count: Box::new(count), past: Mutex::new(past) }))
    }

    /// Notes what came, minute by minute, until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        self.note_every(MINUTE, &stop).await;
    }

    async fn note_every(&self, span: Duration, stop: &CancellationToken) {
        let mut clock = tokio::time::interval(span);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        clock.tick().await;
        while stop.run_until_cancelled(clock.tick()).await.is_some() {
            self.note(Timestamp::now());
        }
    }

    fn note(&self, now: Timestamp) {
        let counted = (self.0.count)();
        let mut past = self.0.past.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = Minute { end: now, bytes: risen(past.counted, counted) };
        past.counted = counted;
        if past.minutes.len() == MINUTES {
            past.minutes.pop_front();
        }
        past.minutes.push_back(minute);
    }

    /// The last hour, oldest first, and what came since the last full minute.
    #[must_use]
    pub fn last_hour(&self) -> Vec<Minute> {
        let counted = (self.0.count)();
        let past = self.0.past.lock().unwrap_or_else(PoisonError::into_inner);
        let running = Minute { end: Timestamp::now(), bytes: risen(past.counted, counted) };
        past.minutes.iter().copied().chain([running]).collect()
    }
}

fn risen(from: Bytes, to: Bytes) -> Bytes {
    std::array::from_fn(|origin| to[origin].saturating_sub(from[origin]))
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flows").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let counter = Arc::new(AtomicU64::new(1_000));
        let counted = Arc::clone(&counter);
        let flows = Flows::counted_by(move || [counted.load(Ordering::Relaxed), 0, 0, 0, 0]);
        assert_eq!(flows.last_hour().len(), 1);
        assert_eq!(flows.last_hour()[0].bytes[0], 0, "what was before isn't counted");
        for minute in 1..=70 {
            counter.fetch_add(minute, Ordering::Relaxed);
            flows.note(Timestamp::now());
        }
        counter.fetch_add(5, Ordering::Relaxed);
        let bytes: Vec<u64> = flows.last_hour().iter().map(|minute| minute.bytes[0]).collect();
        assert_eq!(bytes.len(), MINUTES + 1);
        assert_eq!((bytes[0], bytes[59], bytes[60]), (11, 70, 5));
    }

    #[tokio::test]
    async fn minutes_are_noted_until_the_end() {
        let (flows, stop) = (Flows::counted_by(|| [0; 5]), CancellationToken::new());
        let (watched, ends) = (flows.clone(), stop.clone());
        let watching = tokio::spawn(async move { watched.note_every(Duration::from_millis(1), &ends).await });
        while flows.last_hour().len() < 4 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        watching.await.unwrap();
    }
}
