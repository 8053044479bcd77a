//! The driver of a transfer: asks the sources in order, writes what comes, goes on where the last one stopped, and
//! proves the whole before it is committed.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::direct::Opened;
use super::transfer::{Arriving, Failure, State, Transfer, Unstored};
use super::{Inner, Kind, PullError};
use crate::image::{Access, Digest, MediaType};
use crate::store::{Ingest, Origin};
use crate::upstream::{Upstream, UpstreamError};

/// What is written at a time, and what may wait meanwhile; both in bytes.
const BATCH: usize = 1 << 20;
/// A transfer that nobody reads any more is given up after this time, unless it is far along.
const UNREAD_FOR: Duration = Duration::from_secs(10);
/// Bytes left to fetch with which a transfer counts as far along, however long the blob is.
const NEARLY_THERE: u64 = 32 << 20;

/// Drives `transfer` to its end, whatever that is.
pub(super) async fn drive(pull: Arc<Inner>, transfer: Arc<Transfer>) {
    let stop = pull.stop.clone();
    pull.metrics.under_way.inc();
    let mut driver =
        Driver { pull: Arc::clone(&pull), transfer: Arc::clone(&transfer), said: Vec::new(), from: Vec::new() };
    let end = tokio::select! {
        end = driver.run() => end,
        () = stop.cancelled() => End::State("stopped", State::Failed(Failure::Cut(PullError::Stopping))),
    };
    let result = match end {
        End::State(result, state) => {
            // Off the map first: who looks again after the change begins anew.
            pull.transfers.remove(&transfer.digest);
            transfer.become_(state);
            result
        }
        End::Unread => "unread",
    };
    pull.metrics.under_way.dec();
    pull.metrics.transfer_ended(result);
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
}

/// Why there is no file for a blob.
enum NotStored {
    /// The source failed before it could be told.
    SourceFailed(UpstreamError),
    /// The disk takes it not; readers get it all the same.
    ReadAnyway,
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
        let digest = self.transfer.digest;
        if let Some(blob) = self.pull.held(&self.transfer.place, &digest).await {
            return End::State("held", State::Whole(blob));
        }
        let mut ingest = self.resume().await;
        if let Some(whole) = ingest.as_ref().filter(|i| i.is_whole()) {
            return self.commit(Arriving::new(Arc::clone(whole), MediaType::octet_stream())).await;
        }
        // Whether readers have been told of the ingest, and so of its length.
        let mut told = false;
        let chain = self.chain();
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
                    self.pull.store.discard(lying).await;
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
                    None => match self.begin(upstream, &mut opened).await {
                        Ok(begun) => begun,
                        Err(NotStored::SourceFailed(e)) => {
                            self.failed(upstream, e);
                            continue;
                        }
                        Err(NotStored::ReadAnyway) => return self.without_store(upstream, opened).await,
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
        tracing::debug!(digest = %self.transfer.digest, upstream = upstream.name(), error = %error, "a source failed");
        self.said.push(Arc::new(error));
    }

    /// The upstreams in their order; those that broke this blob before come last.
    fn chain(&self) -> Vec<Arc<Upstream>> {
        let mut chain = self.pull.upstreams.of(&self.transfer.place.registry).to_vec();
        chain.sort_by_key(|upstream| self.pull.blame.has_broken(upstream.name(), &self.transfer.digest));
        chain
    }

    fn origin(&self) -> Origin {
        Origin { registry: self.transfer.place.registry.clone(), access: Access::Anonymous }
    }

    async fn open(&self, upstream: &Arc<Upstream>, from: u64) -> Result<Opened, UpstreamError> {
        Opened::open(upstream, &self.transfer.place, &self.transfer.digest, self.transfer.kind, from).await
    }

    /// Takes up what an earlier transfer left.
    async fn resume(&self) -> Option<Arc<Ingest>> {
        if self.transfer.kind == Kind::Manifest {
            // Fetched again at once; its media type, which only its registry tells, comes with it.
            return None;
        }
        let digest = self.transfer.digest;
        let size = self.pull.store.resumable(&digest).await?;
        let ingest = self.pull.store.ingest(&digest, size, self.origin()).await.ok()?;
        let checked = Arc::clone(&ingest);
        if let Err(e) = blocking(move || checked.recheck(|| ())).await {
            tracing::warn!(%digest, error = %e, "what an earlier transfer left can't be read; it is fetched again");
        }
        tracing::debug!(%digest, present = ingest.present(), size, "a transfer is taken up");
        Some(ingest)
    }

    /// Opens the file for a blob whose first source has answered.
    async fn begin(&self, upstream: &Arc<Upstream>, opened: &mut Opened) -> Result<Arc<Ingest>, NotStored> {
        if opened.size.is_none() {
            // Without a length there is nothing to reserve; what is small is read to its end to know it.
            opened.read_ahead(self.pull.options.verify_first).await.map_err(NotStored::SourceFailed)?;
        }
        let Some(size) = opened.size else { return Err(NotStored::ReadAnyway) };
        self.pull.store.ingest(&self.transfer.digest, size, self.origin()).await.map_err(|e| {
            tracing::debug!(digest = %self.transfer.digest, upstream = upstream.name(), reason = %e, "not stored");
            NotStored::ReadAnyway
        })
    }

    /// How readers get a blob that the disk doesn't take: a small one from memory, where it is verified once for all;
    /// a large one from a source of their own each.
    async fn without_store(&self, upstream: &Arc<Upstream>, mut opened: Opened) -> End {
        let media_type = opened.media_type.clone();
        let limit = self.pull.options.verify_first;
        if opened.size.is_none_or(|size| size > limit) {
            let size = opened.size;
            let opened = Arc::new(Mutex::new(Some(opened)));
            return End::State("unstored", State::Unstored(Unstored { size, media_type, opened }));
        }
        match opened.read_ahead(limit).await {
            Ok(()) if hashes_to(opened.read(), &self.transfer.digest) => {
                End::State("unstored", State::InMemory(opened.into_read(), media_type))
            }
            Ok(()) => {
                self.pull.blame.broke(upstream.name(), self.transfer.digest);
                End::State("wrong", State::Failed(Failure::WrongBytes))
            }
            Err(e) => {
                let error = PullError::from_all(vec![Arc::new(e)]);
                End::State("cut", State::Failed(Failure::Nothing(error)))
            }
        }
    }

    /// Moves one source's bytes to the disk: while one batch is written and hashed, the next one arrives.
    async fn pump(&self, ingest: &Arc<Ingest>, opened: Opened) -> Pumped {
        let Some(mut at) = ingest.first_gap(0) else { return Pumped::Whole };
        let mut skip = at.saturating_sub(opened.offset);
        let mut source = opened.into_frames();
        let mut pending: Vec<Bytes> = Vec::new();
        let mut pending_bytes = 0;
        let mut writing: Option<JoinHandle<io::Result<()>>> = None;
        let mut ended: Option<Result<(), UpstreamError>> = None;
        let unread = self.unread(ingest);
        tokio::pin!(unread);
        loop {
            if writing.is_none() && pending_bytes > 0 {
                let batch = std::mem::take(&mut pending);
                let from = at;
                at += pending_bytes as u64;
                pending_bytes = 0;
                let (ingest, transfer) = (Arc::clone(ingest), Arc::clone(&self.transfer));
                writing = Some(tokio::task::spawn_blocking(move || {
                    ingest.write(from, &batch)?;
                    transfer.advanced();
                    ingest.hash(from, &batch)
                }));
            }
            if writing.is_none() {
                match ended.take() {
                    Some(Ok(())) if ingest.is_whole() => return Pumped::Whole,
                    Some(Ok(())) => return Pumped::Source(source.cut(at)),
                    Some(Err(e)) => return Pumped::Source(e),
                    None => {}
                }
            }
            tokio::select! {
                written = join(&mut writing), if writing.is_some() => {
                    writing = None;
                    if let Err(e) = written {
                        return Pumped::Disk(e);
                    }
                }
                frame = source.frame(), if ended.is_none() && pending_bytes < BATCH => match frame {
                    Ok(Some(mut frame)) => {
                        let skipped = skip.min(frame.len() as u64);
                        skip -= skipped;
                        frame = frame.slice(skipped as usize..);
                        if at + (pending_bytes + frame.len()) as u64 > ingest.size() {
                            ended = Some(Err(source.too_long()));
                        } else if !frame.is_empty() {
                            pending_bytes += frame.len();
                            pending.push(frame);
                        }
                    }
                    Ok(None) => ended = Some(Ok(())),
                    Err(e) => ended = Some(Err(e)),
                },
                () = &mut unread => {
                    // Before it is off the map: the next transfer of this blob writes where this one stopped.
                    if writing.is_some() {
                        let written = join(&mut writing).await;
                        writing = None;
                        if let Err(e) = written {
                            return Pumped::Disk(e);
                        }
                    }
                    if self.pull.transfers.remove_unread(&self.transfer.digest) {
                        tracing::debug!(digest = %self.transfer.digest, "nobody reads it any more; left where it stands");
                        return Pumped::Unread;
                    }
                    unread.set(self.unread(ingest));
                }
            }
        }
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
        let digest = self.transfer.digest;
        let ingest = Arc::clone(&arriving.ingest);
        let verified = match blocking(move || Ok(ingest.verify())).await {
            Ok(Ok(verified)) => verified,
            Ok(Err(mismatch)) => {
                let sources: Vec<&str> = self.from.iter().map(|upstream| upstream.name()).collect();
                tracing::warn!(%digest, found = %mismatch.found, ?sources, "wrong bytes; nothing of them is kept");
                for source in sources {
                    self.pull.blame.broke(source, digest);
                }
                self.pull.store.discard(arriving.ingest).await;
                return End::State("wrong", State::Failed(Failure::WrongBytes));
            }
            Err(e) => {
                tracing::warn!(%digest, error = %e, "the digest can't be checked");
                return End::State("disk", State::Detached(arriving));
            }
        };
        let place = &self.transfer.place;
        let media_type = Some(arriving.media_type.clone());
        let committed =
            self.pull.store.commit(verified, media_type, &place.registry, &place.repository, Access::Anonymous).await;
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

async fn join(writing: &mut Option<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    match writing {
        Some(writing) => writing.await.unwrap_or_else(|e| Err(io::Error::other(e))),
        None => std::future::pending().await,
    }
}
