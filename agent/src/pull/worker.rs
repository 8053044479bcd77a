//! One connection at work: reads its claim from one upstream, a piece at a time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Wanted;
use super::claims::ClaimId;
use super::direct::{Frames, Opened};
use super::sources::WATCH;
use crate::upstream::{Part, Upstream, UpstreamError};

/// Between two pieces when the transfer is far ahead of its readers. Pieces have 100 KiB and more at such rates, so a
/// slow reader holds a connection to about 100 MB/s, never less.
const PAUSE: Duration = Duration::from_millis(1);

/// A claim, and the connection that its bytes come over. Dropping it ends the connection.
pub(super) struct Worker {
    pub(super) claim: ClaimId,
    pub(super) source: Arc<Upstream>,
    /// Bytes that come before the claim: the upstream ignores ranges.
    pub(super) skip: u64,
    /// Whether its answer has begun.
    pub(super) is_reading: bool,
    /// When its last bytes came, or when it was asked.
    last: Instant,
    /// Since when, and how many bytes since.
    watched: (Instant, u64),
    step: Pin<Box<dyn Future<Output = Step> + Send>>,
}

/// What has become of a worker's last request.
pub(super) enum Step {
    Opened(Result<Opened, UpstreamError>),
    Frame(Frames, Result<Option<Bytes>, UpstreamError>),
}

impl Worker {
    /// Asks `source` for a part.
    pub(super) fn ask(source: Arc<Upstream>, wanted: Wanted, part: Part, claim: ClaimId) -> Self {
        let upstream = Arc::clone(&source);
        let step = Box::pin(async move { Step::Opened(Opened::open(&upstream, &wanted, part).await) });
        Self::new(source, claim, step)
    }

    /// Takes over an answer that is there.
    pub(super) fn with(source: Arc<Upstream>, opened: Opened, claim: ClaimId) -> Self {
        Self::new(source, claim, Box::pin(async { Step::Opened(Ok(opened)) }))
    }

    fn new(source: Arc<Upstream>, claim: ClaimId, step: Pin<Box<dyn Future<Output = Step> + Send>>) -> Self {
        let now = Instant::now();
        Self { claim, source, skip: 0, is_reading: false, last: now, watched: (now, 0), step }
    }

    /// Goes on to the next piece, after a moment's rest if `rest`.
    pub(super) fn read_on(&mut self, mut frames: Frames, rest: bool) {
        self.step = Box::pin(async move {
            if rest {
                tokio::time::sleep(PAUSE).await;
            }
            let frame = frames.frame().await;
            Step::Frame(frames, frame)
        });
    }

    /// So many bytes came.
    pub(super) fn received(&mut self, now: Instant, bytes: u64) {
        self.last = now;
        self.watched.1 += bytes;
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
