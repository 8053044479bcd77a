//! The driver of a transfer: begins it with the first source that answers, has it arrive, and proves the whole before it
//! is committed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::arrival::{Arrival, Arrived};
use super::begin::Begun;
use super::partings::Partings;
use super::sources::Sources;
use super::suspects::{Culprit, Suspects};
use super::transfer::{Arriving, Failure, State, Transfer};
use super::{Inner, Kind, PullError};
use crate::image::{Access, MediaType};
use crate::peers::Follow;
use crate::store::{CommitError, Ingest, Origin};

/// How long the cluster may take to say who broke a blob of which it is unclear here.
const HEARS_WITHIN: Duration = Duration::from_secs(1);

/// Drives `transfer` to its end, whatever that is.
pub(super) async fn drive(pull: Arc<Inner>, transfer: Arc<Transfer>) {
    let stop = pull.stop.clone();
    let ended = Ended::arm(&pull, &transfer);
    let mut driver = Driver {
        sources: Sources::of(Arc::clone(&pull), &transfer),
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
        let received = self.transfer.received.bytes();
        tracing::debug!(
            pull = %self.transfer.trace, digest = %self.transfer.wanted.digest, result,
            bytes_from_upstream = received[0], bytes_from_peers = received[1], "a transfer ended"
        );
        self.pull.journal.received(&self.transfer.wanted.place, received);
        self.pull.metrics.received(received);
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

pub(super) struct Driver {
    pub(super) pull: Arc<Inner>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) sources: Sources,
    pub(super) suspects: Suspects,
}

impl Driver {
    async fn run(&mut self) -> End {
        let wanted = &self.transfer.wanted;
        let digest = wanted.digest;
        if let Ok(Some(blob)) = self.pull.held(wanted).await {
            return End::State("held", State::Whole(blob));
        }
        let mut leftover = self.resume().await;
        let size = leftover.as_ref().map(|ingest| ingest.size());
        let size = size.or_else(|| self.pull.sizes.of(&self.transfer.wanted.place, &digest));
        let frontier = leftover.as_ref().map_or(0, |ingest| ingest.first_gap(0).unwrap_or(ingest.size()));
        let mut follow = self.join(size, frontier).await;
        if let Some(whole) = leftover.as_ref().filter(|i| i.is_whole()) {
            if let Err(error) = self.may_have_leftover().await {
                return End::State("absent", State::Failed(Failure::Nothing(error)));
            }
            let arriving = Arriving::new(Arc::clone(whole), MediaType::octet_stream());
            return self.commit(arriving, &mut follow, Partings::default()).await;
        }
        let mut alone = 0;
        loop {
            let (ingest, media_type, first) = match self.begin(&mut follow, leftover.take()).await {
                Ok(Begun::Ingest(ingest, media_type, first)) => (ingest, media_type, *first),
                Ok(Begun::Small(bytes, media_type, partings)) => {
                    follow.received(bytes.len() as u64);
                    return self.keep_whole(bytes, media_type, &mut follow, partings).await;
                }
                Ok(Begun::Unstored(unstored)) => return End::State("unstored", State::Unstored(unstored)),
                Err(error) => return End::State("absent", State::Failed(Failure::Nothing(error))),
            };
            follow.learnt_size(ingest.size());
            let mut arriving = Arriving::new(ingest, media_type);
            arriving.verify_whole = self.suspects.must_be_verified();
            self.transfer.become_(State::Arriving(arriving.clone()));
            let by = (&mut self.sources, &mut self.suspects);
            let mut arrival = Arrival::new(&self.pull, &self.transfer, arriving, by, &mut follow);
            arrival.employ(first);
            let ended = arrival.run().await;
            let (arriving, partings) = arrival.into_parts();
            match ended {
                Arrived::Whole => return self.commit(arriving, &mut follow, partings).await,
                Arrived::Cut => return End::State("cut", State::Failed(Failure::Cut(self.sources.verdict()))),
                Arrived::Unread => return End::Unread,
                Arrived::NotFromOne => {
                    // Nothing of it has gone out: it would have been verified first.
                    self.pull.store.abandon(&arriving.ingest).await;
                    self.suspects.forget();
                    self.sources.forget();
                    alone += 1;
                    if alone >= self.pull.attempts(&self.transfer.wanted.place) {
                        return End::State("cut", State::Failed(Failure::Cut(self.sources.verdict())));
                    }
                }
                Arrived::Wrong => return self.discard_wrong(&arriving, &mut follow, partings).await,
                Arrived::Disk(e) => {
                    tracing::warn!(%digest, error = %e, "the disk fails; readers go on from upstream, nothing is kept");
                    self.pull.store.note_write_error(&e);
                    return End::State("disk", State::Detached(arriving));
                }
            }
        }
    }

    /// Takes part in the cluster's download. Who has to find out which upstream it is that lies takes nothing from others,
    /// who may have it from any; unless they have found out.
    async fn join(&mut self, size: Option<u64>, frontier: u64) -> Follow {
        let mut follow = self.pull.join_others(&self.transfer, size, frontier);
        if !self.suspects.must_be_alone() {
            return follow;
        }
        // Who hears nothing in time goes alone.
        let _ = timeout(HEARS_WITHIN, follow.answered()).await;
        let digest = self.transfer.wanted.digest;
        if self.pull.heed(&follow, &digest) {
            self.sources.order();
            if self.pull.blame.believes_others(digest) {
                tracing::debug!(pull = %self.transfer.trace, %digest, "others have found out who sent wrong bytes");
                self.suspects.are_explained();
                return follow;
            }
        }
        Follow::alone()
    }

    /// As what the sources' bytes are recorded.
    fn access(&self) -> Access {
        self.pull.access_of(&self.transfer.wanted)
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { registry: self.transfer.wanted.place.registry.clone(), access: self.access() }
    }

    /// Takes up what an earlier transfer left. What came to credentials came to somebody else's, maybe: nothing of it goes
    /// out before a source has given this caller more of it.
    async fn resume(&mut self) -> Option<Arc<Ingest>> {
        if self.transfer.wanted.kind == Kind::Manifest {
            // It is fetched again at once; its media type, which only its registry tells, comes with it.
            return None;
        }
        let digest = self.transfer.wanted.digest;
        let size = self.pull.store.resumable(&digest, self.origin()).await?;
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
        self.sources.take_up();
        Some(ingest)
    }

    /// Whether what an earlier transfer left whole may go to this caller, though no source is asked for any of it.
    async fn may_have_leftover(&self) -> Result<(), PullError> {
        match self.access() {
            Access::Anonymous => Ok(()),
            Access::Authorized => self.pull.confirm(&self.transfer.wanted, false).await,
        }
    }

    /// Verifies a blob that is in memory whole, and stores it if the disk takes it.
    async fn keep_whole(
        &mut self,
        bytes: Bytes,
        media_type: MediaType,
        follow: &mut Follow,
        partings: Partings,
    ) -> End {
        let (place, digest) = (&self.transfer.wanted.place, &self.transfer.wanted.digest);
        follow.learnt_size(bytes.len() as u64);
        let typed = Some(media_type.clone());
        let (registry, access) = self.suspects.delivery((&place.registry, self.access()));
        let stored = self.pull.store.put(digest, bytes.clone(), typed, &registry, &place.repository, access);
        match stored.await {
            Ok(blob) => {
                follow.is_whole();
                End::State("whole", State::Whole(blob))
            }
            Err(e) if !matches!(e, CommitError::Mismatch { .. }) && digest.like(&bytes) == *digest => {
                tracing::debug!(%digest, reason = %e, "not stored");
                End::State("unstored", State::InMemory(bytes, media_type))
            }
            Err(_) => {
                self.find_culprit(follow, partings).await;
                End::State("wrong", State::Failed(Failure::WrongBytes))
            }
        }
    }

    async fn commit(&mut self, arriving: Arriving, follow: &mut Follow, partings: Partings) -> End {
        let digest = self.transfer.wanted.digest;
        let ingest = Arc::clone(&arriving.ingest);
        let verified = match blocking(move || Ok(ingest.verify())).await {
            Ok(Ok(verified)) => verified,
            Ok(Err(_)) => return self.discard_wrong(&arriving, follow, partings).await,
            Err(e) => {
                tracing::warn!(%digest, error = %e, "the digest can't be checked");
                return End::State("disk", State::Detached(arriving));
            }
        };
        let place = &self.transfer.wanted.place;
        let media_type = Some(arriving.media_type.clone());
        let (registry, access) = self.suspects.delivery((&place.registry, self.access()));
        let committed = self.pull.store.commit(verified, media_type, &registry, &place.repository, access).await;
        match committed {
            Ok(blob) => {
                follow.is_whole();
                End::State("whole", State::Whole(blob))
            }
            Err(e) => {
                tracing::warn!(%digest, error = %e, "not put into the store; readers finish from what is there");
                End::State("disk", State::Arriving(Arriving { verified: true, ..arriving }))
            }
        }
    }

    /// What arrived is wrong: nothing of it is kept.
    async fn discard_wrong(&mut self, arriving: &Arriving, follow: &mut Follow, partings: Partings) -> End {
        self.find_culprit(follow, partings).await;
        self.pull.store.abandon(&arriving.ingest).await;
        // Whoever had a part of it, and may have left: by its size, nothing of it is continued.
        if self.transfer.furthest() > 0 || self.suspects.has_leftover() {
            self.pull.take_back(&self.transfer.wanted.digest, arriving.ingest.size()).await;
        }
        End::State("wrong", State::Failed(Failure::WrongBytes))
    }

    /// The digest doesn't hold: finds out by whose fault, remembers it, and tells the cluster.
    async fn find_culprit(&mut self, follow: &mut Follow, partings: Partings) {
        for (node, parted) in partings.ask().await {
            self.suspects.parted(node, &parted);
        }
        let (pull, digest) = (&self.transfer.trace, &self.transfer.wanted.digest);
        let culprit = self.suspects.have_broken_it();
        tracing::warn!(%pull, %digest, from = %self.suspects, ?culprit, "wrong bytes; nothing of them is kept");
        match culprit {
            Culprit::Upstream(sender) => {
                if self.suspects.took_from(sender.host()) {
                    self.pull.warn_others(sender.host());
                }
                follow.broke(&[sender.host().to_owned()], None);
            }
            Culprit::Peer(node) => follow.broke(&[], Some(node)),
            Culprit::Likely(_) | Culprit::Unclear => {}
        }
    }
}

/// Disk work off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}
