use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::waits::Waits;

/// Who has waited for longer asks those who read blobs to give way: what is quick is over by itself.
const MOMENT: Duration = Duration::from_millis(500);
/// Nobody has to give way sooner than this: a line that has stood for less doesn't stand still.
pub(super) const STANDS: Duration = Duration::from_secs(5);

/// An upstream's `max_connections`: never are more requests under way there, bodies included.
///
/// Blobs, which may take minutes, have all places but one, where there are two or more: what is quick doesn't wait for
/// them. Who finds no place waits in line, as long as that moves. It is no fault of the upstream's: no deadline of the
/// request runs meanwhile, and nothing is held against it. That the line moves is up to those who read blobs: as long as
/// [`Places::are_waited_for`], they give theirs back after a while.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) most: usize,
    all: Line,
    /// Those of `all` that blobs may have.
    for_blobs: Line,
    /// Everybody who has no place yet.
    waits: Waits,
    /// Those among them who have waited for more than a moment.
    long_waits: Waits,
}

/// For what a place is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// A head, a manifest, a list, a token.
    Quick,
    /// The bytes of a blob.
    Blob,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    // Free before the other one: who is quick waits for this alone, and comes before the next blob.
    _one: OwnedSemaphorePermit,
    _of_blobs: Option<OwnedSemaphorePermit>,
}

/// Who comes first is served first.
#[derive(Debug)]
struct Line {
    free: Arc<Semaphore>,
    /// When somebody last got a place.
    moved: Mutex<Instant>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        let (all, for_blobs) = (Line::new(most), Line::new(most.saturating_sub(1).max(1)));
        Self { most, all, for_blobs, waits: Waits::default(), long_waits: Waits::default() }
    }

    /// A place, when there is one. `None` when nobody gets any for as long as `patience`.
    pub(super) async fn take(&self, load: Load, patience: Duration) -> Option<Place> {
        let _waiting = self.waits.begin();
        let taking = async {
            let of_blobs = match load {
                Load::Quick => None,
                Load::Blob => Some(self.for_blobs.take(patience).await?),
            };
            Some(Place { _one: self.all.take(patience).await?, _of_blobs: of_blobs })
        };
        tokio::pin!(taking);
        if let Ok(place) = timeout(MOMENT, &mut taking).await {
            return place;
        }
        let _waiting_long = self.long_waits.begin();
        taking.await
    }

    /// Whether somebody would be glad of a place that is given back.
    pub(super) fn are_waited_for(&self) -> bool {
        self.long_waits.are_any()
    }

    /// Whether somebody has waited for a place since then.
    pub(super) fn were_waited_for(&self, since: Instant) -> bool {
        self.waits.were_any(since)
    }

    /// How many more blobs could be asked for at once.
    pub(super) fn free_for_blobs(&self) -> usize {
        self.for_blobs.free.available_permits().min(self.all.free.available_permits())
    }

    /// How many blobs can be asked for at once.
    pub(super) fn most_for_blobs(&self) -> usize {
        self.most.saturating_sub(1).max(1)
    }
}

impl Line {
    fn new(places: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(places)), moved: Mutex::new(Instant::now()) }
    }

    async fn take(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let taking = Arc::clone(&self.free).acquire_owned();
        tokio::pin!(taking);
        let mut until = Instant::now() + patience;
        loop {
            if let Ok(taken) = timeout_at(until, &mut taking).await {
                *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                return taken.ok();
            }
            let moved = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
            if moved + patience <= until {
                return None;
            }
            until = moved + patience;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    /// What is there without waiting.
    fn at_once(places: &Places, load: Load) -> Option<Place> {
        places.take(load, PATIENCE).now_or_never().flatten()
    }

    #[tokio::test]
    async fn one_of_several_is_kept_for_what_is_quick() {
        let places = Places::new(3);
        let blobs = [at_once(&places, Load::Blob), at_once(&places, Load::Blob)];
        assert!(blobs.iter().all(Option::is_some));
        assert_eq!(places.free_for_blobs(), 0);
        assert!(at_once(&places, Load::Blob).is_none());
        let quick = at_once(&places, Load::Quick);
        assert!(quick.is_some());
        assert!(at_once(&places, Load::Quick).is_none(), "there are three");
        drop(blobs);
        let quick = [quick, at_once(&places, Load::Quick), at_once(&places, Load::Quick)];
        assert!(quick.iter().all(Option::is_some), "what is quick may have all");
        assert!(at_once(&places, Load::Blob).is_none(), "there are three");
    }

    #[tokio::test]
    async fn of_a_single_place_what_is_quick_is_the_next() {
        let places = Places::new(1);
        let held = at_once(&places, Load::Blob).unwrap();
        let served = Mutex::new(Vec::new());
        let wait = async |load| {
            let _place = places.take(load, PATIENCE).await.unwrap();
            served.lock().unwrap().push(load);
        };
        tokio::join!(wait(Load::Blob), wait(Load::Quick), async { drop(held) });
        assert_eq!(*served.lock().unwrap(), [Load::Quick, Load::Blob]);
    }

    #[tokio::test]
    async fn the_line_is_stood_in_as_long_as_it_moves() {
        let places = Places::new(2);
        // There is one place for them.
        let readers = (0..15).map(|_| async {
            let place = places.take(Load::Blob, PATIENCE).await;
            tokio::time::sleep(PATIENCE / 10).await;
            place.is_some()
        });
        let served = futures_util::future::join_all(readers).await;
        assert_eq!(served, [true; 15], "the last waited for longer than anybody has patience");
        let _held = at_once(&places, Load::Blob).unwrap();
        let began = Instant::now();
        assert!(places.take(Load::Blob, PATIENCE).await.is_none());
        assert!(began.elapsed() >= PATIENCE);
        assert!(places.were_waited_for(began));
    }

    #[tokio::test]
    async fn who_waits_for_a_moment_asks_nobody_to_give_way() {
        let places = Places::new(2);
        let held = at_once(&places, Load::Blob).unwrap();
        let waiting = places.take(Load::Blob, PATIENCE);
        tokio::pin!(waiting);
        assert!(timeout(MOMENT / 2, &mut waiting).await.is_err());
        assert!(!places.are_waited_for());
        assert!(timeout(MOMENT, &mut waiting).await.is_err());
        assert!(places.are_waited_for());
        drop(held);
        waiting.await.unwrap();
        assert!(!places.are_waited_for());
    }
}
