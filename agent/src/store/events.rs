use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::provenance::Provenance;
use crate::image::Digest;

/// Events that wait for a slow watcher. Who misses some lists the store anew.
const WAITING: usize = 4096;

/// What became of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is held, and this is where it came from; said again when that, or anything else that is known of it, changes.
    Kept(Digest, Provenance),
    /// It isn't held any more.
    Gone(Digest),
    /// Its file was found damaged. It was set aside: that it is gone is said too, before this.
    Damaged(Digest),
    /// Some events were missed: only a list of the store says what is held.
    Missed,
}

/// What becomes of the store's blobs from now on.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event; `None` once the store is gone. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(_)) => Some(Event::Missed),
            Err(RecvError::Closed) => None,
        }
    }
}

/// Where events come from.
#[derive(Debug)]
pub(super) struct Teller(broadcast::Sender<Event>);

impl Default for Teller {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Teller {
    /// Never waits.
    pub(super) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.0.receiver_count() > 0 {
            // An error says that the last watcher just left.
            let _ = self.0.send(event());
        }
    }

    pub(super) fn events(&self) -> Events {
        Events(self.0.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_slow_knows_that_something_was_missed() {
        let teller = Teller::default();
        let digest = Digest::of(b"x");
        teller.tell(|| unreachable!("nobody watches"));
        let mut events = teller.events();
        teller.tell(|| Event::Kept(digest, Provenance::default()));
        assert_eq!(events.next().await, Some(Event::Kept(digest, Provenance::default())));
        for _ in 0..=WAITING {
            teller.tell(|| Event::Gone(digest));
        }
        assert_eq!(events.next().await, Some(Event::Missed));
        assert_eq!(events.next().await, Some(Event::Gone(digest)));
        drop(teller);
        while let Some(event) = events.next().await {
            assert_eq!(event, Event::Gone(digest));
        }
    }
}
