//! The driver of a transfer: begins it with the first source that answers, has it arrive, and proves the whole before it
//! is committed.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::StatusCode;

use super::arrival::{Arrival, Arrived, WANTED};
use super::ask::first_to_answer;
use super::blame::Suspects;
use super::claims::NEAR;
use super::direct::Opened;
use super::sources::Sources;
use super::transfer::{Arriving, Failure, State, Transfer, Unstored};
use super::{Inner, Kind, PullError};
use crate::image::{Access, Digest, MediaType};
use crate::store::{CHUNK, CommitError, Ingest, Origin};
use crate::upstream::{ErrorKind, Part, Upstream, UpstreamError};

/// A blob up to this size is read into memory, verified, and stored in one go, in bytes.
const SMALL: u64 = 1 << 20;
/// Drives `transfer` to its end, whatever that is.
pub(super) async fn drive(pull: Arc<Inner>, transfer: Arc<Transfer>) {
    let stop = pull.stop.clone();
    let ended = Ended::arm(&pull, &transfer);
    let mut driver = Driver {
        sources: Sources::new(Arc::clone(&pull), transfer.wanted.clone()),
        suspects: Suspects::new(Arc::clone(&pull), transfer.wanted.digest),
        pull: Arc::clone(&pull),
        transfer: Arc::clone(&transfer),
    };
    let end = tokio::select! {
        end = driver.run() => end,
        () = stop.cancelled() => End::State("stopped", State::Failed(Failure::Cut(PullError::Stopping))),
    };
    ended.with(end);
}

/// Tells a transfer's readers of its end, also when the driver panics: nobody waits for one that is gone.
struct Ended {
    pull: Arc<Inner>,
    transfer: Arc<Transfer>,
    end: End,
}

impl Ended {
    fn arm(pull: &Arc<Inner>, transfer: &Arc<Transfer>) -> Self {
        pull.metrics.under_way.inc();
        let broken = State::Failed(Failure::Cut(PullError::Stopping));
        Self { pull: Arc::clone(pull), transfer: Arc::clone(transfer), end: End::State("broken", broken) }
    }

    fn with(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let result = match std::mem::replace(&mut self.end, End::Unread) {
            End::State(result, state) => {
                // Off the map first: who looks again after the change begins anew.
                self.pull.transfers.remove(&self.transfer.wanted.digest);
                self.transfer.become_(state);
                result
            }
            End::Unread => "unread",
        };
        self.pull.metrics.under_way.dec();
        self.pull.metrics.transfer_ended(result);
    }
}

enum End {
    /// For the metric, and for the readers.
    State(&'static str, State),
    /// Off the map already, and nobody is there to tell. What arrived stays for who comes next.
    Unread,
}

struct Driver {
    pull: Arc<Inner>,
    transfer: Arc<Transfer>,
    sources: Sources,
    suspects: Suspects,
}

/// What becomes of a blob whose first source has answered.
enum Begun {
    /// It arrives in a file.
    Ingest(Arc<Ingest>, Box<Answered>),
    /// There is nothing more to drive.
    Ended(End),
}

/// A source's answer to the request for a part.
struct Answered {
    source: Arc<Upstream>,
    opened: Opened,
    /// The first byte that was asked for.
    from: u64,
}

impl Driver {
    async fn run(&mut self) -> End {
        let digest = self.transfer.wanted.digest;
        if let Ok(Some(blob)) = self.pull.held(&self.transfer.wanted).await {
            return End::State("held", State::Whole(blob));
        }
        let mut leftover = self.resume().await;
        if let Some(whole) = leftover.as_ref().filter(|i| i.is_whole()) {
            return self.commit(Arriving::new(Arc::clone(whole), MediaType::octet_stream())).await;
        }
        let mut alone = 0;
        loop {
            let (ingest, first) = match self.begin(leftover.take()).await {
                Ok(Begun::Ingest(ingest, first)) => (ingest, *first),
                Ok(Begun::Ended(end)) => return end,
                Err(error) => return End::State("absent", State::Failed(Failure::Nothing(error))),
            };
            let mut arriving = Arriving::new(ingest, first.opened.media_type.clone());
            arriving.verify_whole = self.suspects.take_from(&first.source);
            self.transfer.become_(State::Arriving(arriving.clone()));
            let mut arrival = Arrival::new(&self.pull, &self.transfer, arriving, &mut self.sources, &mut self.suspects);
            arrival.employ(first.source, first.opened, first.from);
            let ended = arrival.run().await;
            let arriving = arrival.into_arriving();
            match ended {
                Arrived::Whole => return self.commit(arriving).await,
                Arrived::Cut => return End::State("cut", State::Failed(Failure::Cut(self.sources.verdict()))),
                Arrived::Unread => return End::Unread,
                Arrived::NotFromOne => {
                    // Nothing of it has gone out: it would have been verified first.
                    self.pull.store.abandon(&arriving.ingest).await;
                    self.suspects.forget();
                    alone += 1;
                    if alone >= self.pull.attempts(&self.transfer.wanted.place) {
                        return End::State("cut", State::Failed(Failure::Cut(self.sources.verdict())));
                    }
                }
                Arrived::Disk(e) => {
                    tracing::warn!(%digest, error = %e, "the disk fails; readers go on from upstream, nothing is kept");
                    self.pull.store.note_write_error(&e);
                    return End::State("disk", State::Detached(arriving));
                }
            }
        }
    }

    /// As what the sources' bytes are recorded.
    fn access(&self) -> Access {
        self.pull.access_of(&self.transfer.wanted)
    }

    fn origin(&self) -> Origin {
        Origin { registry: self.transfer.wanted.place.registry.clone(), access: self.access() }
    }

    /// Takes up what an earlier transfer left.
    async fn resume(&mut self) -> Option<Arc<Ingest>> {
        if self.transfer.wanted.kind == Kind::Manifest || self.access() == Access::Authorized {
            // A manifest is fetched again at once; its media type, which only its registry tells, comes with it. And
            // for credentials, what lies there came to anybody, or to somebody else.
            return None;
        }
        let digest = self.transfer.wanted.digest;
        let size = self.pull.store.resumable(&digest).await?;
        let ingest = self.pull.store.ingest(&digest, size, self.origin()).await.ok()?;
        if self.suspects.must_be_alone() {
            self.pull.store.abandon(&ingest).await;
            return None;
        }
        let checked = Arc::clone(&ingest);
        if let Err(e) = blocking(move || checked.recheck()).await {
            tracing::warn!(%digest, error = %e, "what an earlier transfer left can't be read; it is fetched again");
            self.pull.store.abandon(&ingest).await;
            return None;
        }
        tracing::debug!(%digest, present = ingest.present(), size, "a transfer is taken up");
        self.suspects.take_leftover();
        Some(ingest)
    }

    /// Asks until a source answers whose answer makes a beginning: each once, since a caller that gets nothing here has
    /// other hosts to ask.
    async fn begin(&mut self, mut leftover: Option<Arc<Ingest>>) -> Result<Begun, PullError> {
        // The length that a source gave, when it wasn't what had been taken for true.
        let mut disputed = None;
        let mut part = self.first_part(leftover.as_ref());
        loop {
            let Some((source, opened)) = first_to_answer(&mut self.sources, &self.transfer.wanted, part).await else {
                if disputed.take().is_some() {
                    // Nobody contradicts.
                    self.discard(&mut leftover).await;
                } else if part == Part::WHOLE
                    || !self.sources.said(&ErrorKind::Server(StatusCode::RANGE_NOT_SATISFIABLE))
                {
                    return Err(self.sources.verdict());
                }
                // It may be shorter than who asks for its end believes; then they are to be told.
                part = Part::WHOLE;
                self.sources.begin_round();
                continue;
            };
            let from = part.from;
            if let Some(left) = &leftover {
                let size = left.size();
                if opened.size.is_none_or(|says| says == size) {
                    return Ok(Begun::Ingest(Arc::clone(left), Box::new(Answered { source, opened, from })));
                }
                if disputed == opened.size {
                    self.discard(&mut leftover).await;
                    part = Part::WHOLE;
                } else {
                    disputed = opened.size;
                    let error =
                        source.wrong_answer(format!("says another length than {size} bytes, as was said before"));
                    self.sources.failed(&source, error);
                }
                continue;
            }
            if from > 0 && opened.size.is_none_or(|size| size <= self.in_memory()) {
                // What is small comes whole.
                part = Part::WHOLE;
                continue;
            }
            match self.begin_with(&source, opened, from).await {
                Ok(begun) => return Ok(begun),
                Err(e) => self.sources.failed(&source, e),
            }
        }
    }

    async fn discard(&mut self, leftover: &mut Option<Arc<Ingest>>) {
        if let Some(lying) = leftover.take() {
            self.pull.store.abandon(&lying).await;
            self.suspects.forget();
        }
    }

    /// What is asked for first: where the reader is that began the transfer, if that is far in.
    fn first_part(&self, leftover: Option<&Arc<Ingest>>) -> Part {
        let frontier = leftover.and_then(|ingest| ingest.first_gap(0)).unwrap_or(0);
        let wanted = match self.transfer.begun_at {
            at if self.transfer.wanted.kind == Kind::Manifest || at == u64::MAX => frontier,
            at if at <= frontier.saturating_add(NEAR) => frontier,
            at => match leftover {
                Some(ingest) => ingest.gap(at).map_or(frontier, |gap| gap.start),
                None => at / CHUNK * CHUNK,
            },
        };
        Part { from: wanted, to: (wanted > frontier).then(|| wanted.saturating_add(WANTED)) }
    }

    /// Up to this size a blob is read into memory where the disk doesn't take it, in bytes.
    fn in_memory(&self) -> u64 {
        self.pull.options.verify_first.max(SMALL)
    }

    /// Begins a blob whose first source has answered: a small one is done at once, a large one gets its file. What the
    /// disk doesn't take is read all the same: from memory where it is small enough to be verified there, else by each
    /// reader from a source of its own.
    async fn begin_with(
        &mut self,
        source: &Arc<Upstream>,
        mut opened: Opened,
        from: u64,
    ) -> Result<Begun, UpstreamError> {
        if opened.size.is_none() {
            // Without a length there is nothing to reserve; what is small is read to its end to know it.
            opened.read_ahead_among(self.pull.options.verify_first, &mut self.sources).await?;
        }
        if let Some(size) = opened.size.filter(|&size| size > SMALL) {
            match self.pull.store.ingest(&self.transfer.wanted.digest, size, self.origin()).await {
                Ok(ingest) => {
                    let answered = Answered { source: Arc::clone(source), opened, from };
                    return Ok(Begun::Ingest(ingest, Box::new(answered)));
                }
                Err(e) => tracing::debug!(digest = %self.transfer.wanted.digest, reason = %e, "not stored"),
            }
        }
        let (size, media_type) = (opened.size, opened.media_type.clone());
        if size.is_some_and(|size| size <= self.in_memory()) {
            let all = self.in_memory();
            opened.read_ahead_among(all, &mut self.sources).await?;
            return Ok(Begun::Ended(self.keep_whole(source, opened.into_read(), media_type).await));
        }
        // Only what begins with the blob is of use to any reader.
        let opened = Arc::new(Mutex::new((from == 0).then_some(opened)));
        Ok(Begun::Ended(End::State("unstored", State::Unstored(Unstored { size, media_type, opened }))))
    }

    /// Verifies a blob that is in memory whole, and stores it if the disk takes it.
    async fn keep_whole(&self, upstream: &Arc<Upstream>, bytes: Bytes, media_type: MediaType) -> End {
        let (place, digest) = (&self.transfer.wanted.place, &self.transfer.wanted.digest);
        let typed = Some(media_type.clone());
        let stored =
            self.pull.store.put(digest, bytes.clone(), typed, &place.registry, &place.repository, self.access());
        match stored.await {
            Ok(blob) => End::State("whole", State::Whole(blob)),
            Err(e) if !matches!(e, CommitError::Mismatch { .. }) && hashes_to(&bytes, digest) => {
                tracing::debug!(%digest, reason = %e, "not stored");
                End::State("unstored", State::InMemory(bytes, media_type))
            }
            Err(_) => {
                tracing::warn!(%digest, source = upstream.name(), "wrong bytes; nothing of them is kept");
                self.pull.blame.broke(upstream.name(), *digest);
                End::State("wrong", State::Failed(Failure::WrongBytes))
            }
        }
    }

    async fn commit(&self, arriving: Arriving) -> End {
        let digest = self.transfer.wanted.digest;
        let ingest = Arc::clone(&arriving.ingest);
        let verified = match blocking(move || Ok(ingest.verify())).await {
            Ok(Ok(verified)) => verified,
            Ok(Err(mismatch)) => {
                tracing::warn!(%digest, found = %mismatch.found, from = %self.suspects, "wrong bytes; nothing of them is kept");
                self.suspects.have_broken_it();
                self.pull.store.abandon(&arriving.ingest).await;
                // Whoever had a part of it, and may have left: by its size, nothing of it is continued.
                if self.transfer.furthest() > 0 || self.suspects.has_leftover() {
                    self.pull.take_back(&digest, arriving.ingest.size()).await;
                }
                return End::State("wrong", State::Failed(Failure::WrongBytes));
            }
            Err(e) => {
                tracing::warn!(%digest, error = %e, "the digest can't be checked");
                return End::State("disk", State::Detached(arriving));
            }
        };
        let place = &self.transfer.wanted.place;
        let media_type = Some(arriving.media_type.clone());
        let committed =
            self.pull.store.commit(verified, media_type, &place.registry, &place.repository, self.access()).await;
        match committed {
            Ok(blob) => End::State("whole", State::Whole(blob)),
            Err(e) => {
                tracing::warn!(%digest, error = %e, "not put into the store; readers finish from what is there");
                End::State("disk", State::Arriving(Arriving { verified: true, ..arriving }))
            }
        }
    }
}

fn hashes_to(bytes: &[u8], digest: &Digest) -> bool {
    let mut hasher = digest.hasher();
    hasher.update(bytes);
    hasher.finish() == *digest
}

/// Disk work off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}
