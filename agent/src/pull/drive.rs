//! The driver of a transfer: asks the sources in order, writes what comes, goes on where the last one stopped, and
//! proves the whole before it is committed.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::direct::Opened;
use super::transfer::{Arriving, Failure, State, Transfer, Unstored};
use super::{Inner, Kind, PullError, Wanted};
use crate::image::{Access, Digest, MediaType};
use crate::store::{CommitError, Ingest, Origin};
use crate::upstream::{Part, Upstream, UpstreamError};

/// A transfer that nobody reads any more is given up after this time, unless it is far along.
const UNREAD_FOR: Duration = Duration::from_secs(10);
/// A blob up to this size is read into memory, verified, and stored in one go, in bytes.
const SMALL: u64 = 1 << 20;
/// How far a transfer runs ahead of its nearest reader at full speed, in bytes.
const FAR_AHEAD: u64 = 2 << 20;
/// Between two pieces beyond that. Pieces have 100 KiB and more at such rates, so a slow reader holds a transfer to
/// about 100 MB/s, never less.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes left to fetch with which a transfer counts as far along, however long the blob is.
const NEARLY_THERE: u64 = 32 << 20;

/// Drives `transfer` to its end, whatever that is.
pub(super) async fn drive(pull: Arc<Inner>, transfer: Arc<Transfer>) {
    let stop = pull.stop.clone();
    let ended = Ended::arm(&pull, &transfer);
    let mut driver = Driver {
        pull: Arc::clone(&pull),
        transfer: Arc::clone(&transfer),
        said: Vec::new(),
        from: Vec::new(),
        took_up_a_leftover: false,
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
    /// What sources said that didn't help.
    said: Vec<Arc<UpstreamError>>,
    /// The sources whose bytes are in the ingest.
    from: Vec<Arc<Upstream>>,
    /// Whether an earlier transfer's bytes are in it too, which may have reached a caller.
    took_up_a_leftover: bool,
}

/// What becomes of a blob whose first source has answered.
enum Begun {
    /// It arrives in a file.
    Ingest(Arc<Ingest>, Box<Opened>),
    /// There is nothing more to drive.
    Ended(End),
}

/// Why one source's bytes ended.
enum Pumped {
    /// Everything is there.
    Whole,
    /// The source failed.
    Source(UpstreamError),
    /// The disk failed.
    Disk(io::Error),
    /// Nobody reads, and it is off the map.
    Unread,
}

impl Driver {
    async fn run(&mut self) -> End {
        let digest = self.transfer.wanted.digest;
        if let Ok(Some(blob)) = self.pull.held(&self.transfer.wanted).await {
            return End::State("held", State::Whole(blob));
        }
        let mut ingest = self.resume().await;
        self.took_up_a_leftover = ingest.is_some();
        if let Some(whole) = ingest.as_ref().filter(|i| i.is_whole()) {
            return self.commit(Arriving::new(Arc::clone(whole), MediaType::octet_stream())).await;
        }
        // Whether readers have been told of the ingest, and so of its length.
        let mut told = false;
        let chain = self.pull.chain(&self.transfer.wanted.place, &digest);
        loop {
            let before = ingest.as_ref().map_or(0, |i| i.present());
            for upstream in &chain {
                let from = ingest.as_ref().and_then(|i| i.first_gap(0)).unwrap_or(0);
                let mut opened = match self.open(upstream, from).await {
                    Ok(opened) => opened,
                    Err(e) => {
                        self.failed(upstream, e);
                        continue;
                    }
                };
                if let Some(lying) = ingest.take_if(|i| opened.size.is_some_and(|says| says != i.size())) {
                    if told {
                        let size = lying.size();
                        ingest = Some(lying);
                        self.failed(upstream, upstream.wrong_answer(format!("says another length than {size} bytes")));
                        continue;
                    }
                    // What an earlier transfer left is of another length: begin anew.
                    self.pull.store.abandon(&lying).await;
                    self.took_up_a_leftover = false;
                    opened = match self.open(upstream, 0).await {
                        Ok(opened) => opened,
                        Err(e) => {
                            self.failed(upstream, e);
                            continue;
                        }
                    };
                }
                let media_type = opened.media_type.clone();
                let current = match ingest.take() {
                    Some(ingest) => ingest,
                    None => match self.begin(upstream, opened).await {
                        Ok(Begun::Ingest(begun, rest)) => {
                            opened = *rest;
                            begun
                        }
                        Ok(Begun::Ended(end)) => return end,
                        Err(e) => {
                            self.failed(upstream, e);
                            continue;
                        }
                    },
                };
                ingest = Some(Arc::clone(&current));
                self.from.push(Arc::clone(upstream));
                let mut arriving = Arriving::new(current, media_type);
                arriving.verify_whole = self.from.iter().any(|source| self.pull.blame.is_suspect(source.name()));
                self.transfer.become_(State::Arriving(arriving.clone()));
                told = true;
                match self.pump(&arriving.ingest, opened).await {
                    Pumped::Whole => return self.commit(arriving).await,
                    Pumped::Source(e) => self.failed(upstream, e),
                    Pumped::Unread => return End::Unread,
                    Pumped::Disk(e) => {
                        tracing::warn!(%digest, error = %e, "the disk fails; readers go on from upstream, nothing is kept");
                        self.pull.store.note_write_error(&e);
                        return End::State("disk", State::Detached(arriving));
                    }
                }
            }
            let now = ingest.as_ref().map_or(0, |i| i.present());
            // Another round as long as rounds bring bytes: a source that cuts every connection still gets there.
            if now == before {
                let error = PullError::from_all(std::mem::take(&mut self.said));
                return if told {
                    End::State("cut", State::Failed(Failure::Cut(error)))
                } else {
                    End::State("absent", State::Failed(Failure::Nothing(error)))
                };
            }
        }
    }

    fn failed(&mut self, upstream: &Arc<Upstream>, error: UpstreamError) {
        tracing::debug!(digest = %self.transfer.wanted.digest, upstream = upstream.name(), error = %error, "a source failed");
        self.said.push(Arc::new(error));
    }

    fn origin(&self) -> Origin {
        Origin { registry: self.transfer.wanted.place.registry.clone(), access: self.transfer.wanted.grant.access() }
    }

    async fn open(&self, upstream: &Arc<Upstream>, from: u64) -> Result<Opened, UpstreamError> {
        self.pull.open(upstream, &self.transfer.wanted, Part::from(from)).await
    }

    /// Takes up what an earlier transfer left.
    async fn resume(&self) -> Option<Arc<Ingest>> {
        let Wanted { kind, grant, .. } = &self.transfer.wanted;
        if *kind == Kind::Manifest || grant.access() == Access::Authorized {
            // A manifest is fetched again at once; its media type, which only its registry tells, comes with it. And
            // what lies there came to anybody, or to somebody else.
            return None;
        }
        let digest = self.transfer.wanted.digest;
        let size = self.pull.store.resumable(&digest).await?;
        let ingest = self.pull.store.ingest(&digest, size, self.origin()).await.ok()?;
        let checked = Arc::clone(&ingest);
        if let Err(e) = blocking(move || checked.recheck()).await {
            tracing::warn!(%digest, error = %e, "what an earlier transfer left can't be read; it is fetched again");
            self.pull.store.abandon(&ingest).await;
            return None;
        }
        tracing::debug!(%digest, present = ingest.present(), size, "a transfer is taken up");
        Some(ingest)
    }

    /// Begins a blob whose first source has answered: a small one is done at once, a large one gets its file. What the
    /// disk doesn't take is read all the same: from memory where it is small enough to be verified there, else by each
    /// reader from a source of its own.
    async fn begin(&self, upstream: &Arc<Upstream>, mut opened: Opened) -> Result<Begun, UpstreamError> {
        let verify_first = self.pull.options.verify_first;
        if opened.size.is_none() {
            // Without a length there is nothing to reserve; what is small is read to its end to know it.
            opened.read_ahead(verify_first).await?;
        }
        if let Some(size) = opened.size.filter(|&size| size > SMALL) {
            match self.pull.store.ingest(&self.transfer.wanted.digest, size, self.origin()).await {
                Ok(ingest) => return Ok(Begun::Ingest(ingest, Box::new(opened))),
                Err(e) => tracing::debug!(digest = %self.transfer.wanted.digest, reason = %e, "not stored"),
            }
        }
        let (size, media_type) = (opened.size, opened.media_type.clone());
        if size.is_some_and(|size| size <= verify_first.max(SMALL)) {
            opened.read_ahead(verify_first.max(SMALL)).await?;
            return Ok(Begun::Ended(self.keep_whole(upstream, opened.into_read(), media_type).await));
        }
        let opened = Arc::new(Mutex::new(Some(opened)));
        Ok(Begun::Ended(End::State("unstored", State::Unstored(Unstored { size, media_type, opened }))))
    }

    /// Verifies a blob that is in memory whole, and stores it if the disk takes it.
    async fn keep_whole(&self, upstream: &Arc<Upstream>, bytes: Bytes, media_type: MediaType) -> End {
        let (place, digest) = (&self.transfer.wanted.place, &self.transfer.wanted.digest);
        let (typed, access) = (Some(media_type.clone()), self.transfer.wanted.grant.access());
        let stored = self.pull.store.put(digest, bytes.clone(), typed, &place.registry, &place.repository, access);
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

    /// Moves one source's bytes to the disk, piece by piece: written, told to the readers, hashed.
    async fn pump(&self, ingest: &Arc<Ingest>, opened: Opened) -> Pumped {
        let Some(mut at) = ingest.first_gap(0) else { return Pumped::Whole };
        let mut skip = at.saturating_sub(opened.offset);
        let mut source = opened.into_frames();
        let unread = self.unread(ingest);
        tokio::pin!(unread);
        loop {
            tokio::select! {
                biased;
                frame = source.frame() => match frame {
                    Ok(Some(mut frame)) => {
                        let skipped = skip.min(frame.len() as u64);
                        skip -= skipped;
                        frame = frame.slice(skipped as usize..);
                        if at + frame.len() as u64 > ingest.size() {
                            return Pumped::Source(source.too_long());
                        }
                        if let Err(e) = self.take(ingest, at, &frame) {
                            return Pumped::Disk(e);
                        }
                        at += frame.len() as u64;
                        self.pace(at).await;
                    }
                    Ok(None) if ingest.is_whole() => return Pumped::Whole,
                    Ok(None) => return Pumped::Source(source.cut(at)),
                    Err(e) => return Pumped::Source(e),
                },
                () = &mut unread => {
                    if self.pull.transfers.remove_unread(&self.transfer.wanted.digest) {
                        tracing::debug!(digest = %self.transfer.wanted.digest, "nobody reads it any more; left where it stands");
                        return Pumped::Unread;
                    }
                    unread.set(self.unread(ingest));
                }
            }
        }
    }

    /// Waits a moment when even the nearest reader is far behind. On few cores a transfer that races ahead takes the
    /// CPU from the reader that it serves, and ends while that one still has most of its way to go.
    async fn pace(&self, at: u64) {
        if self.transfer.is_followed() && at.saturating_sub(self.transfer.furthest()) > FAR_AHEAD {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// May block on the disk: lanes are there for it.
    fn take(&self, ingest: &Ingest, at: u64, frame: &Bytes) -> io::Result<()> {
        let parts = std::slice::from_ref(frame);
        let were_there = ingest.write(at, parts)?;
        self.transfer.advanced();
        ingest.hash(at, if were_there == 0 { parts } else { &[] })
    }

    /// Ends when nobody has read for a while, unless the transfer is far along.
    async fn unread(&self, ingest: &Ingest) {
        loop {
            while self.transfer.readers() > 0 {
                self.transfer.left.notified().await;
            }
            tokio::time::sleep(UNREAD_FOR).await;
            let present = ingest.present();
            let far_along = present >= ingest.size() / 2 || ingest.size() - present <= NEARLY_THERE;
            if self.transfer.readers() == 0 && !far_along {
                return;
            }
        }
    }

    async fn commit(&self, arriving: Arriving) -> End {
        let digest = self.transfer.wanted.digest;
        let ingest = Arc::clone(&arriving.ingest);
        let verified = match blocking(move || Ok(ingest.verify())).await {
            Ok(Ok(verified)) => verified,
            Ok(Err(mismatch)) => {
                let sources: Vec<&str> = self.from.iter().map(|upstream| upstream.name()).collect();
                tracing::warn!(%digest, found = %mismatch.found, ?sources, "wrong bytes; nothing of them is kept");
                // A leftover's bytes may be anyone's: nobody is blamed for them.
                for source in sources.into_iter().filter(|_| !self.took_up_a_leftover) {
                    self.pull.blame.broke(source, digest);
                }
                self.pull.store.abandon(&arriving.ingest).await;
                // Whoever had a part of it, and may have left: by its size, nothing of it is continued.
                if self.transfer.furthest() > 0 || self.took_up_a_leftover {
                    self.pull.take_back(&digest, arriving.ingest.size()).await;
                }
                return End::State("wrong", State::Failed(Failure::WrongBytes));
            }
            Err(e) => {
                tracing::warn!(%digest, error = %e, "the digest can't be checked");
                return End::State("disk", State::Detached(arriving));
            }
        };
        let Wanted { place, grant, .. } = &self.transfer.wanted;
        let media_type = Some(arriving.media_type.clone());
        let committed =
            self.pull.store.commit(verified, media_type, &place.registry, &place.repository, grant.access()).await;
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
