use std::time::Duration;

use tokio::time::Instant;

/// What goes on at a time at the least, in bytes, unless too little comes for a moment.
const LEAST: u64 = 64 << 10;
/// That moment. Over a link that many blobs share, each gets some kilobytes of it at a time, and passing those on costs
/// every program on their way, containerd too, about as much as 64 KiB.
const MOMENT: Duration = Duration::from_millis(100);

/// How long the little that is here of a blob under way waits for more, before it goes on.
#[derive(Debug, Default)]
pub(super) struct Gather {
    until: Option<Instant>,
}

impl Gather {
    /// Until when so many bytes wait, if no more come; `None`: it is time for them to go on.
    pub(super) fn until(&mut self, now: Instant, bytes: u64) -> Option<Instant> {
        let until = *self.until.get_or_insert(now + MOMENT);
        if bytes < LEAST && now < until {
            return Some(until);
        }
        self.until = None;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_waits_for_more_and_not_for_long() {
        let (mut gather, now) = (Gather::default(), Instant::now());
        assert_eq!(gather.until(now, LEAST), None);
        let ends = now + MOMENT;
        assert_eq!(gather.until(now, 1), Some(ends));
        assert_eq!(gather.until(now + MOMENT / 2, 2), Some(ends), "what comes meanwhile doesn't begin the wait anew");
        assert_eq!(gather.until(ends, 2), None);
        assert_eq!(gather.until(ends, 3), Some(ends + MOMENT), "the next has a moment of its own");
        assert_eq!(gather.until(ends, LEAST), None);
    }
}
