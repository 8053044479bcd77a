use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// What goes on at a time at the least, in bytes, unless too little comes for a moment.
const LEAST: u64 = 64 << 10;
/// That moment. Over a link that many blobs share, each gets some kilobytes of it at a time, and passing those on costs
/// every program on their way, containerd too, about as much as 64 KiB.
const MOMENT: Duration = Duration::from_millis(100);

/// How long the little that is here of a blob under way waits for more, before it goes on.
///
/// The first of a stream doesn't wait: along a chain, it says to dozens of nodes that there is something.
#[derive(Debug, Default)]
pub(super) struct Gather {
    has_begun: bool,
    hurries: bool,
    until: Option<Instant>,
}

impl Gather {
    /// Until when so many bytes wait, if no more come; `None`: it is time for them to go on.
    pub(super) fn until(&mut self, now: Instant, bytes: u64) -> Option<Instant> {
        if !self.has_begun || self.hurries || bytes >= LEAST {
            return None;
        }
        let until = *self.until.get_or_insert(now + MOMENT);
        (now < until).then_some(until)
    }

    /// Waits for more until then. Over, or not: the next look at the transfer shows it.
    pub(super) async fn more(until: Instant, changes: &mut watch::Receiver<()>) {
        let _ = timeout_at(until, changes.changed()).await;
    }

    /// Something went on: what comes next has a moment of its own.
    pub(super) const fn went(&mut self) {
        self.has_begun = true;
        self.until = None;
    }

    /// Nothing waits any more: it isn't known that more comes.
    pub(super) const fn hurry(&mut self) {
        self.hurries = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_waits_for_more_and_not_for_long() {
        let (mut gather, now) = (Gather::default(), Instant::now());
        assert_eq!(gather.until(now, 1), None, "the first says that there is something");
        gather.went();
        let ends = now + MOMENT;
        assert_eq!(gather.until(now, 1), Some(ends));
        assert_eq!(gather.until(now + MOMENT / 2, 2), Some(ends), "what comes meanwhile doesn't begin the wait anew");
        assert_eq!(gather.until(now + MOMENT / 2, LEAST), None);
        assert_eq!(gather.until(ends, 2), None);
        assert_eq!(gather.until(ends, 2), None, "it may be asked for again before it goes");
        gather.went();
        assert_eq!(gather.until(ends, 3), Some(ends + MOMENT), "the next has a moment of its own");
        gather.hurry();
        assert_eq!(gather.until(ends, 3), None);
    }
}
