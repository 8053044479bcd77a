//! A blob, cut into messages.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Duration, Instant};

use super::source::Reading;
use crate::image::NodeId;
use crate::pull::Ended;
use crate::wire::Limiter;

/// Bytes in one message at the most: what is larger costs less.
const MOST: usize = 256 << 10;
/// And however little goes: what is smaller costs more.
const LEAST: usize = 16 << 10;
/// A message is what a stream sends in so long. Streams of one connection take turns by messages, so it is also how long a
/// turn of all of them takes, about, however many there are and however slow the link: a new one is heard after it, and
/// each beat. With messages of one size dozens of small blobs over a slow link waited for seconds, and their readers took
/// the sender for dead.
const TURN: Duration = Duration::from_millis(200);

/// What a peer reads, in messages, at the rate that is permitted.
pub(super) struct Pieces<R> {
    limiter: Option<Arc<Limiter>>,
    reader: NodeId,
    reading: R,
    /// Read, and not yet gone out.
    held: Bytes,
    /// The wait for the next piece, of so many bytes, kept when it is interrupted: it is paid for.
    paying: Option<(usize, BoxFuture<'static, ()>)>,
    /// The next byte to go out.
    at: u64,
    turns: Turns,
}

impl<R: Reading> Pieces<R> {
    /// Of `reading`, which begins at byte `at`.
    pub(super) fn new(reading: R, at: u64, reader: NodeId, limiter: Option<Arc<Limiter>>) -> Self {
        Self { limiter, reader, reading, held: Bytes::new(), paying: None, at, turns: Turns::new(Instant::now()) }
    }

    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    pub(super) const fn reading(&self) -> &R {
        &self.reading
    }

    pub(super) const fn reading_mut(&mut self) -> &mut R {
        &mut self.reading
    }

    /// The next piece; `None` at the end. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        if self.held.is_empty() {
            match self.reading.next().await? {
                Some(bytes) => self.held = bytes,
                None => return Ok(None),
            }
        }
        let mut len = self.held.len().min(self.turns.message(Instant::now()));
        if let Some(limiter) = &self.limiter {
            let (limiter, reader) = (Arc::clone(limiter), self.reader);
            let take = || -> (usize, BoxFuture<'static, ()>) {
                (len, Box::pin(async move { limiter.take(reader, len as u64).await }))
            };
            let (paid, paying) = self.paying.get_or_insert_with(take);
            paying.await;
            len = *paid;
            self.paying = None;
        }
        self.at += len as u64;
        self.turns.sent(len);
        Ok(Some(self.held.split_to(len)))
    }
}

/// How much went in the last turn, and in this one.
#[derive(Debug)]
struct Turns {
    began: Instant,
    last: usize,
    this: usize,
}

impl Turns {
    const fn new(now: Instant) -> Self {
        Self { began: now, last: 0, this: 0 }
    }

    /// How long a message may be. At first the least, and then twice as much as before, as long as the connection takes it.
    fn message(&mut self, now: Instant) -> usize {
        let took = now - self.began;
        if took >= TURN {
            self.last = (self.this as f64 * TURN.as_secs_f64() / took.as_secs_f64()) as usize;
            (self.began, self.this) = (now, 0);
        }
        self.last.max(self.this).clamp(LEAST, MOST)
    }

    const fn sent(&mut self, bytes: usize) {
        self.this = self.this.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths of so many messages, of which each takes so long.
    fn lengths(turns: &mut Turns, now: &mut Instant, count: usize, takes: impl Fn(usize) -> Duration) -> Vec<usize> {
        let mut one = || {
            let len = turns.message(*now);
            turns.sent(len);
            *now += takes(len);
            len
        };
        (0..count).map(|_| one()).collect()
    }

    #[test]
    fn a_message_is_what_goes_in_a_turn() {
        let mut now = Instant::now();
        let mut turns = Turns::new(now);
        let at = |rate: f64| move |len: usize| Duration::from_secs_f64(len as f64 / rate);
        let fast = lengths(&mut turns, &mut now, 8, at(1e9));
        assert_eq!(fast, [16, 16, 32, 64, 128, 256, 256, 256].map(|kib| kib << 10));
        let slow = lengths(&mut turns, &mut now, 50, at(500e3));
        assert!(slow[10..].iter().all(|len| (80_000..=120_000).contains(len)), "{slow:?}");
        let crawling = lengths(&mut turns, &mut now, 50, at(50e3));
        assert!(crawling[10..].iter().all(|len| *len == LEAST), "{crawling:?}");
        let again = lengths(&mut turns, &mut now, 50, at(1e9));
        assert_eq!(again.last(), Some(&MOST), "{again:?}");
    }
}
