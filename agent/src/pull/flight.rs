use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// One piece of work under way for each key, whose outcome all who ask meanwhile share.
///
/// The work is a task of its own: it goes on when the one who asked first leaves.
pub(super) struct Flights<K, V>(Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>);

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The outcome of the flight for `key`, begun with `work` if none is under way. `None` if its task was ended.
    pub(super) async fn join<F>(&self, key: K, tasks: &TaskTracker, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut outcome = {
            let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.entry(key.clone()) {
                Entry::Occupied(flight) => flight.get().clone(),
                Entry::Vacant(place) => {
                    let (sender, receiver) = watch::channel(None);
                    place.insert(receiver.clone());
                    let work = work();
                    let landed = Landed { flights: Arc::clone(&self.0), key };
                    tasks.spawn(async move {
                        let outcome = work.await;
                        // First off the board, then told: who comes now begins anew.
                        drop(landed);
                        sender.send_replace(Some(outcome));
                    });
                    receiver
                }
            }
        };
        let outcome = outcome.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }
}

/// Takes a flight off the board however it ends.
struct Landed<K: Eq + Hash, V> {
    flights: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landed<K, V> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn one_flight_for_all_who_ask_and_the_first_may_leave() {
        let flights: Flights<&str, usize> = Flights::default();
        let tasks = TaskTracker::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Notify::new());
        let work = || {
            let (runs, gate) = (Arc::clone(&runs), Arc::clone(&gate));
            move || async move {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                run
            }
        };
        {
            let first = flights.join("a", &tasks, work());
            futures_util::pin_mut!(first);
            assert!(futures_util::poll!(&mut first).is_pending());
        }
        let (second, third, ()) =
            tokio::join!(flights.join("a", &tasks, work()), flights.join("a", &tasks, work()), async {
                gate.notify_one();
            });
        assert_eq!((second, third), (Some(0), Some(0)));
        gate.notify_one();
        assert_eq!(flights.join("a", &tasks, work()).await, Some(1), "a landed flight is not joined");
    }
}
