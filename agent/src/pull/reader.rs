//! One stream of a blob's bytes, wherever they are.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::direct::{Direct, DirectEnd};
use super::drive::blocking;
use super::gather::Gather;
use super::journal::SOURCES;
use super::transfer::{Arriving, Failure, Following, State, Unstored};
use super::{Inner, Wanted};
use crate::image::{Digest, Hasher};
use crate::store::{Blob, BlobReader, CHUNK};

/// A transfer moves, or ends, within its own deadlines; so long beyond them, its reader takes it for dead.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// The most that is read again, in bytes, to prove the end of a blob whose beginning can't be read back any more.
const READ_AGAIN: u64 = 64 << 20;
/// How long containerd may take to give up what it took in of a wrong blob.
const ABORT_DEADLINE: Duration = Duration::from_secs(2);
/// What is read of a growing file at a time, in bytes.
const PIECE: u64 = 256 << 10;

/// Reads a range of a blob. While it does, the bytes may change their source: the store, a transfer, an upstream.
///
/// The last [`CHUNK`] of a blob goes out only when its digest holds, and the whole of it when its source is suspect or it
/// is small. A part for its own sake waits for neither its end nor the frontier.
pub struct Reader {
    pull: Arc<Inner>,
    wanted: Wanted,
    start: u64,
    /// The next byte to go out.
    at: u64,
    /// `None`: to the end of a blob whose length nobody said.
    end: Option<u64>,
    /// Whether it is a part for its own sake, whose reader can tell by other means whether it is right.
    is_part: bool,
    source: Source,
    gather: Gather,
    attempts: usize,
    bytes: [u64; SOURCES.len()],
    cut_short: bool,
}

/// Where a reader's bytes come from at the moment.
pub(super) enum Source {
    Store(BlobReader),
    Transfer(Box<Following>, watch::Receiver<()>),
    Memory(Bytes),
    Upstream(Box<Direct>),
}

/// The rest can't be had, or the digest doesn't hold: the reply has to end short of its length, so that its reader
/// doesn't take it for whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rest of the blob can't be had")]
pub struct EndedShort;

enum Step {
    Bytes(Bytes),
    /// The source changed: look again.
    Again,
    End,
}

impl Source {
    pub(super) fn store(blob: &Blob, start: u64, end: Option<u64>) -> Self {
        Self::Store(blob.reader(start..end.unwrap_or(blob.size())))
    }

    pub(super) fn transfer(following: Following) -> Self {
        let changes = following.changes();
        Self::Transfer(Box::new(following), changes)
    }

    pub(super) fn upstream(
        pull: &Arc<Inner>,
        wanted: &Wanted,
        range: (u64, Option<u64>),
        hashed: Option<(Hasher, u64)>,
        unstored: Option<&Unstored>,
    ) -> Self {
        let mut direct = Direct::new(Arc::clone(pull), wanted.clone(), range, hashed);
        let opened = unstored.and_then(|u| u.opened.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(opened) = opened {
            direct.take_over(opened);
        }
        Self::Upstream(Box::new(direct))
    }

    fn label(&self) -> usize {
        match self {
            Self::Store(reader) if reader.is_in_place() => 1,
            Self::Store(_) => 0,
            Self::Transfer(..) | Self::Memory(_) => 2,
            Self::Upstream(_) => 3,
        }
    }
}

impl Reader {
    pub(super) fn new(
        pull: Arc<Inner>,
        wanted: Wanted,
        (start, end): (u64, Option<u64>),
        is_part: bool,
        source: Source,
    ) -> Self {
        let bytes = Default::default();
        pull.journal.replies(&wanted.place);
        Self {
            pull,
            wanted,
            start,
            at: start,
            end,
            is_part,
            source,
            gather: Gather::default(),
            attempts: 1,
            bytes,
            cut_short: false,
        }
    }

    /// The next bytes; `None` when all that was asked for has been given.
    ///
    /// # Errors
    /// [`EndedShort`]: nothing more comes, and what was given is not all.
    pub async fn next(&mut self) -> Result<Option<Bytes>, EndedShort> {
        loop {
            if self.cut_short {
                return Err(EndedShort);
            }
            if self.end.is_some_and(|end| self.at >= end) {
                if self.start == 0 && !self.is_part {
                    self.pull.blame.lifted(&self.wanted.digest);
                }
                return Ok(None);
            }
            let label = self.source.label();
            let step = self.step().await.inspect_err(|EndedShort| self.cut_short = true)?;
            match step {
                Step::Bytes(bytes) => {
                    self.gather.went();
                    self.at += bytes.len() as u64;
                    self.bytes[label] += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Step::Again => {}
                Step::End => return Ok(None),
            }
        }
    }

    async fn step(&mut self) -> Result<Step, EndedShort> {
        let verify_first = self.pull.options.verify_first;
        let may_try_again = self.may_try_again();
        match &mut self.source {
            Source::Store(reader) => match reader.next().await {
                Ok(Some(bytes)) => Ok(Step::Bytes(bytes)),
                Ok(None) => Ok(Step::End),
                Err(e) => {
                    tracing::warn!(digest = %self.wanted.digest, error = %e, "a stored blob can't be read; the rest comes from upstream");
                    if e.is_damage() && may_try_again {
                        self.pull.store.set_aside(reader).await;
                        self.follow_anew();
                    } else {
                        self.read_again();
                    }
                    Ok(Step::Again)
                }
            },
            Source::Memory(bytes) => Ok(Step::Bytes(std::mem::take(bytes))),
            Source::Upstream(direct) => match direct.next().await {
                Ok(Some(bytes)) => Ok(Step::Bytes(bytes)),
                Ok(None) if self.end.is_none() => Ok(Step::End),
                Ok(None) | Err(DirectEnd::Cut) => Err(EndedShort),
                Err(DirectEnd::WrongBytes) => Err(self.take_back().await),
            },
            Source::Transfer(following, changes) => {
                // Before looking, so that a change after the look is not missed.
                changes.mark_unchanged();
                match following.state() {
                    State::Asking => {}
                    State::Arriving(arriving) => {
                        let available = arriving.ingest.available(self.at);
                        let permitted = permitted_to(&arriving, verify_first, self.end, self.is_part);
                        let to = available.min(permitted);
                        if to > self.at {
                            following.read_to(self.at);
                            let until = self.gather.until(Instant::now(), to - self.at);
                            let Some(until) = until.filter(|_| to < permitted) else {
                                return self.read(&arriving, to).await;
                            };
                            Gather::more(until, changes).await;
                            return Ok(Step::Again);
                        }
                        if available > self.at {
                            following.wait_for_proof();
                        } else {
                            following.wait_for(self.at, self.end.unwrap_or(arriving.ingest.size()));
                        }
                    }
                    State::Detached(arriving) => {
                        let available = arriving.ingest.available(self.at);
                        let to = available.min(permitted_to(&arriving, verify_first, self.end, self.is_part));
                        if to > self.at {
                            return self.read(&arriving, to).await;
                        }
                        let hasher = self.hash_so_far(&arriving).await;
                        if hasher.is_none() && self.end == Some(arriving.ingest.size()) && !self.is_part {
                            // The end of a blob goes out proven, or not at all.
                            return Err(EndedShort);
                        }
                        let at = self.at;
                        self.read_upstream(hasher.map(|hasher| (hasher, at)), None);
                        return Ok(Step::Again);
                    }
                    State::Whole(blob) => {
                        self.source = Source::store(&blob, self.at, self.end);
                        return Ok(Step::Again);
                    }
                    State::InMemory(bytes, _) => {
                        let end = self.end.map_or(bytes.len(), |end| end as usize);
                        let end = end.min(bytes.len());
                        self.source = Source::Memory(bytes.slice((self.at as usize).min(end)..end));
                        return Ok(Step::Again);
                    }
                    State::Unstored(unstored) => {
                        self.read_upstream(None, Some(&unstored));
                        return Ok(Step::Again);
                    }
                    // Who continues an earlier reply has its wrong beginning: the right end would be no help.
                    State::Failed(Failure::WrongBytes) if self.may_begin_anew() && may_try_again => {
                        self.follow_anew();
                        return Ok(Step::Again);
                    }
                    State::Failed(Failure::WrongBytes) => return Err(self.take_back().await),
                    State::Failed(Failure::Nothing(error) | Failure::Cut(error)) => {
                        tracing::warn!(digest = %self.wanted.digest, image = %self.wanted.place, error = %error, "a reply ends short");
                        return Err(EndedShort);
                    }
                }
                // An error would mean that the transfer is gone, which `following` rules out.
                match timeout(self.pull.options.patience() + GRACE, changes.changed()).await {
                    Ok(_) => Ok(Step::Again),
                    Err(_) => Err(EndedShort),
                }
            }
        }
    }

    /// Whether nothing that may be wrong has gone out to this caller, now or before.
    const fn may_begin_anew(&self) -> bool {
        self.at == 0 || (self.is_part && self.at == self.start)
    }

    fn may_try_again(&self) -> bool {
        self.attempts <= self.pull.attempts(&self.wanted.place)
    }

    async fn read(&self, arriving: &Arriving, to: u64) -> Result<Step, EndedShort> {
        let length = (to - self.at).min(PIECE) as usize;
        match self.pull.store.read_arrived(&arriving.ingest, self.at, length).await {
            Ok(bytes) => Ok(Step::Bytes(bytes)),
            Err(e) => {
                tracing::warn!(digest = %self.wanted.digest, error = %e, "what arrived can't be read back");
                Err(EndedShort)
            }
        }
    }

    /// Goes on by a new transfer: what was stored, or what came, was no good.
    fn follow_anew(&mut self) {
        self.attempts += 1;
        match self.pull.follow(&self.wanted, self.at, None) {
            Ok(following) => self.source = Source::transfer(following),
            // What arrives now is not for this caller, or not yet known to be.
            Err(_) => self.read_again(),
        }
    }

    /// Goes on from upstream. What has gone out can't be hashed any more where it lies; where it isn't much, it is read
    /// again to prove the whole.
    fn read_again(&mut self) {
        let again = !self.is_part && self.at <= READ_AGAIN;
        let hashed = again.then(|| (self.wanted.digest.hasher(), 0));
        self.read_upstream(hashed, None);
    }

    /// The hash of all bytes before `at`, with which a reader that leaves a failing disk can still prove the whole.
    async fn hash_so_far(&self, arriving: &Arriving) -> Option<Hasher> {
        if self.end != Some(arriving.ingest.size()) || self.is_part {
            return None;
        }
        if self.at == 0 {
            return Some(self.wanted.digest.hasher());
        }
        let (ingest, at) = (Arc::clone(&arriving.ingest), self.at);
        blocking(move || ingest.hash_to(at)).await.ok()
    }

    /// Goes on past the disk. `hashed` is a hash over all bytes before the second.
    fn read_upstream(&mut self, hashed: Option<(Hasher, u64)>, unstored: Option<&Unstored>) {
        let whole = self.at == 0 && unstored.is_some_and(|u| u.size == self.end);
        let hashed = hashed.or_else(|| whole.then(|| (self.wanted.digest.hasher(), 0)));
        let range = (self.at, self.end);
        self.source = Source::upstream(&self.pull, &self.wanted, range, hashed, unstored);
    }

    /// The digest doesn't hold. What went out is remembered, so that nobody continues it, and containerd, which would
    /// keep it and fail again without asking, is told to forget it.
    async fn take_back(&self) -> EndedShort {
        if self.at > 0 && !self.is_part {
            self.pull.take_back(&self.wanted.digest, self.at).await;
        }
        EndedShort
    }
}

/// How far a blob that isn't proven yet may go out.
fn permitted_to(arriving: &Arriving, verify_first: u64, end: Option<u64>, is_part: bool) -> u64 {
    let size = arriving.ingest.size();
    let permitted = if arriving.verified {
        size
    } else if arriving.verify_whole || size <= verify_first {
        0
    } else if is_part {
        size
    } else {
        (size - 1) / CHUNK * CHUNK
    };
    permitted.min(end.unwrap_or(size))
}

impl Inner {
    /// The bytes of `digest` up to `reached` have gone out, and are wrong.
    pub(super) async fn take_back(&self, digest: &Digest, reached: u64) {
        self.blame.poisoned(*digest, reached);
        self.metrics.poisoned.inc();
        let Some(containerd) = &self.containerd else { return };
        match timeout(ABORT_DEADLINE, containerd.abort_ingest(digest)).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => tracing::warn!(%digest, error = %e, "containerd keeps wrong bytes"),
            Err(_) => tracing::warn!(%digest, "containerd keeps wrong bytes: it doesn't answer"),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for (source, bytes) in SOURCES.into_iter().zip(self.bytes) {
            if bytes > 0 {
                self.pull.metrics.served(source, bytes);
            }
        }
        self.pull.journal.delivered(&self.wanted.place, self.bytes, self.cut_short);
    }
}
