use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Place;
use super::received::ORIGINS;
use crate::peers::Trace;

/// A pull is over when nothing was asked of its repository for so long.
const QUIET: Duration = Duration::from_secs(3);
/// The most pulls that are kept apart at a time; what comes beyond is not written.
const BOUND: usize = 1024;

/// One log line a pull: what came, how much, and from where.
///
/// containerd doesn't say where a pull ends, so one is what is asked of a repository without a long pause.
#[derive(Clone, Default)]
pub(super) struct Journal(Arc<Shared>);

#[derive(Default)]
struct Shared {
    pulls: Mutex<HashMap<Place, Entry>>,
    begun: Notify,
}

#[derive(Debug, Clone)]
struct Entry {
    trace: Trace,
    first: Instant,
    last: Instant,
    /// Replies under way: as long as there are any, it isn't over.
    replies: usize,
    reference: Option<String>,
    blobs: u64,
    cut_short: u64,
    bytes: [u64; SOURCES.len()],
    received: [u64; ORIGINS.len()],
}

/// Where bytes come from, as logs and metrics name it.
pub(super) const SOURCES: [&str; 4] = ["store", "containerd", "transfer", "upstream"];

impl Journal {
    /// A tag was asked for.
    pub(super) fn resolved(&self, place: &Place, reference: &str) {
        self.enter(place, |entry| entry.reference = Some(reference.to_owned()));
    }

    /// A reply with a blob begins.
    pub(super) fn replies(&self, place: &Place) {
        self.enter(place, |entry| entry.replies += 1);
    }

    /// A reply with a blob ended.
    pub(super) fn delivered(&self, place: &Place, bytes: [u64; SOURCES.len()], cut_short: bool) {
        self.enter(place, |entry| {
            entry.replies = entry.replies.saturating_sub(1);
            entry.blobs += 1;
            entry.cut_short += u64::from(cut_short);
            for (sum, bytes) in entry.bytes.iter_mut().zip(bytes) {
                *sum += bytes;
            }
        });
    }

    /// A transfer that was begun for it ended.
    pub(super) fn received(&self, place: &Place, bytes: [u64; ORIGINS.len()]) {
        self.enter(place, |entry| {
            for (sum, bytes) in entry.received.iter_mut().zip(bytes) {
                *sum += bytes;
            }
        });
    }

    /// What tells the pull that is under way of a place from all others.
    pub(super) fn trace(&self, place: &Place) -> Trace {
        let mut trace = None;
        self.enter(place, |entry| trace = Some(entry.trace.clone()));
        trace.unwrap_or_default()
    }

    fn enter(&self, place: &Place, change: impl FnOnce(&mut Entry)) {
        let mut pulls = self.0.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if pulls.len() >= BOUND && !pulls.contains_key(place) {
            return;
        }
        let now = Instant::now();
        let entry = pulls.entry(place.clone()).or_insert_with(|| {
            self.0.begun.notify_one();
            Entry::new(now)
        });
        entry.last = now;
        change(entry);
    }

    /// Writes the lines of pulls that are over, until `stop`; then those of all.
    pub(super) async fn write_lines(self, stop: CancellationToken) {
        loop {
            let next = self.write_those_quiet_for(QUIET);
            let wait = async {
                match next {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => self.0.begun.notified().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = stop.cancelled() => break,
            }
        }
        self.write_those_quiet_for(Duration::ZERO);
    }

    /// Returns when the next one will be due.
    fn write_those_quiet_for(&self, quiet: Duration) -> Option<Duration> {
        let mut pulls = self.0.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|place, entry| {
            let goes_on = entry.last.elapsed() < quiet || (entry.replies > 0 && !quiet.is_zero());
            if !goes_on {
                entry.write(place);
            }
            goes_on
        });
        let due = |entry: &Entry| match entry.replies {
            0 => quiet.saturating_sub(entry.last.elapsed()),
            // Not before they have ended.
            _ => quiet,
        };
        pulls.values().map(due).min()
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        let (bytes, received) = Default::default();
        Self {
            trace: Trace::new(),
            first: now,
            last: now,
            replies: 0,
            reference: None,
            blobs: 0,
            cut_short: 0,
            bytes,
            received,
        }
    }

    fn write(&self, place: &Place) {
        let [store, containerd, transfer, upstream] = self.bytes;
        let [fetched, from_peers] = self.received;
        let image = match &self.reference {
            Some(reference) if reference.contains(':') => format!("{place}@{reference}"),
            Some(reference) => format!("{place}:{reference}"),
            None => place.to_string(),
        };
        let seconds = (self.last - self.first).as_secs_f64();
        if self.cut_short > 0 {
            tracing::warn!(
                pull = %self.trace,
                image,
                blobs = self.blobs,
                cut_short = self.cut_short,
                bytes_from_store = store,
                bytes_from_containerd = containerd,
                bytes_from_transfers = transfer,
                bytes_from_upstream = upstream,
                fetched_from_upstream = fetched,
                fetched_from_peers = from_peers,
                seconds,
                "a pull in which replies ended short"
            );
        } else if self.blobs > 0 {
            tracing::info!(
                pull = %self.trace,
                image,
                blobs = self.blobs,
                bytes_from_store = store,
                bytes_from_containerd = containerd,
                bytes_from_transfers = transfer,
                bytes_from_upstream = upstream,
                fetched_from_upstream = fetched,
                fetched_from_peers = from_peers,
                seconds,
                "pulled"
            );
        } else {
            tracing::debug!(pull = %self.trace, image, "looked up");
        }
    }
}
