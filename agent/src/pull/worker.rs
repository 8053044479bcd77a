//! One connection at work: reads its claim from one source, a piece at a time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::claims::ClaimId;
use super::direct::Opened;
use super::source::{Answer, Fault, Pieces, Source};
use super::sources::WATCH;
use super::transfer::Transfer;
use super::{Inner, Wanted};
use crate::peers::Peer;
use crate::upstream::{Part, Upstream};

/// Between two pieces when the transfer is far ahead of its readers. Pieces have 100 KiB and more at such rates, so a
/// slow reader holds a connection to about 100 MB/s, never less.
pub(super) const PAUSE: Duration = Duration::from_millis(1);
/// How long who reads a blob keeps its connection while others wait for one: so that each of them begins within a
/// reply's deadline, and the requests that this costs are few.
pub(super) const TURN: Duration = Duration::from_secs(2);

/// A claim, and the connection that its bytes come over. Dropping it ends the connection.
pub(super) struct Worker {
    pub(super) claim: ClaimId,
    pub(super) source: Source,
    /// It serves a reader far ahead, whoever's turn it is to bring what comes next.
    pub(super) is_out_of_turn: bool,
    /// Bytes that come before the claim: the upstream ignores ranges.
    pub(super) skip: u64,
    /// Whether its answer has begun.
    pub(super) is_reading: bool,
    /// When its answer began, with the bytes that were asked for; `None` where it began with others.
    in_turn_since: Option<Instant>,
    /// Bytes that came.
    received: u64,
    /// When its last bytes came, or when it was asked.
    last: Instant,
    /// Since when, and how many bytes since.
    watched: (Instant, u64),
    step: Pin<Box<dyn Future<Output = Step> + Send>>,
}

/// What has become of a worker's last request.
pub(super) enum Step {
    Opened(Result<Answer, Fault>),
    Piece(Pieces, Result<Option<Bytes>, Fault>),
}

impl Worker {
    /// Asks an upstream for a part.
    pub(super) fn ask(upstream: Arc<Upstream>, wanted: Wanted, part: Part, claim: ClaimId) -> Self {
        let source = Source::Upstream(Arc::clone(&upstream));
        let step = async move {
            let opened = Opened::open(&upstream, &wanted, part).await;
            Step::Opened(
                opened
                    .map(|opened| Answer::Upstream(Box::new(opened)))
                    .map_err(|error| Fault::Upstream(upstream, error)),
            )
        };
        Self::new(source, claim, Box::pin(step))
    }

    /// Reads a part from a peer.
    pub(super) fn read(pull: Arc<Inner>, transfer: Arc<Transfer>, peer: Peer, part: Part, claim: ClaimId) -> Self {
        let source = Source::Peer(peer.clone());
        let step = async move {
            let opened = pull.open_at(&peer, &transfer, part).await;
            Step::Opened(opened.map(Answer::Peer).map_err(Fault::Peer))
        };
        Self::new(source, claim, Box::pin(step))
    }

    /// Takes over an answer that is there.
    pub(super) fn with(source: Source, answer: Answer, claim: ClaimId) -> Self {
        Self::new(source, claim, Box::pin(async { Step::Opened(Ok(answer)) }))
    }

    fn new(source: Source, claim: ClaimId, step: Pin<Box<dyn Future<Output = Step> + Send>>) -> Self {
        let now = Instant::now();
        let (is_out_of_turn, is_reading) = (false, false);
        let (received, last, watched) = (0, now, (now, 0));
        Self { claim, source, is_out_of_turn, skip: 0, is_reading, in_turn_since: None, received, last, watched, step }
    }

    /// Serves a reader far ahead.
    pub(super) const fn out_of_turn(mut self) -> Self {
        self.is_out_of_turn = true;
        self
    }

    /// Its answer has begun.
    pub(super) fn begin(&mut self, now: Instant, pieces: Pieces) {
        self.is_reading = true;
        self.in_turn_since = (self.skip == 0).then_some(now);
        self.watch_anew(now);
        self.read_on(pieces, None);
    }

    /// Whether it reads from this upstream.
    pub(super) fn is_of(&self, upstream: &Arc<Upstream>) -> bool {
        matches!(&self.source, Source::Upstream(source) if Arc::ptr_eq(source, upstream))
    }

    /// Goes on to the next piece, after a rest.
    pub(super) fn read_on(&mut self, mut pieces: Pieces, rest: Option<Duration>) {
        if let Some(rest) = rest.filter(|rest| *rest > PAUSE) {
            pieces.rest(rest);
        }
        self.step = Box::pin(async move {
            if let Some(rest) = rest {
                tokio::time::sleep(rest).await;
            }
            let piece = pieces.next().await;
            Step::Piece(pieces, piece)
        });
    }

    /// So many bytes came.
    pub(super) fn received(&mut self, now: Instant, bytes: u64) {
        self.last = now;
        self.received += bytes;
        self.watched.1 += bytes;
    }

    /// Whether any bytes came.
    pub(super) const fn has_given(&self) -> bool {
        self.received > 0
    }

    /// Whether it has brought something, for as long as anybody may while others wait, and another can go on there.
    pub(super) fn has_had_its_turn(&self, now: Instant) -> bool {
        self.has_given() && self.in_turn_since.is_some_and(|since| now.saturating_duration_since(since) >= TURN)
    }

    /// How long nothing has come.
    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last)
    }

    /// Its rate over the last seconds, in bytes a second; `None` as long as it hasn't been watched long enough.
    pub(super) fn rate(&mut self, now: Instant) -> Option<u64> {
        let (since, bytes) = self.watched;
        let elapsed = now.saturating_duration_since(since);
        if elapsed < WATCH {
            return None;
        }
        self.watched = (now, 0);
        Some((bytes as f64 / elapsed.as_secs_f64()) as u64)
    }

    /// Forgets what it was watched for, after a time in which nobody could have read.
    pub(super) fn watch_anew(&mut self, now: Instant) {
        self.last = now;
        self.watched = (now, 0);
    }
}

/// The next step that one of the workers has taken, and whose it is. Each has its turn. Never ends without workers;
/// cancelling loses nothing.
pub(super) async fn next(workers: &mut [Worker], turn: &mut usize) -> (usize, Step) {
    std::future::poll_fn(|context| {
        let count = workers.len();
        for index in (0..count).map(|n| (*turn + n) % count) {
            if let Poll::Ready(step) = workers[index].step.as_mut().poll(context) {
                *turn = index + 1;
                return Poll::Ready((index, step));
            }
        }
        Poll::Pending
    })
    .await
}
