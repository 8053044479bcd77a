use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::direct::Opened;
use super::received::Received;
use super::trust::Asked;
use super::wants::{ReaderId, Wants};
use super::{Pace, PullError, Wanted};
use crate::image::{Digest, MediaType};
use crate::peers::Trace;
use crate::store::{Blob, Ingest};

/// One blob arriving on this node, which many read while it is written.
///
/// Its driver alone changes the state; readers wait for a change and look again.
pub(super) struct Transfer {
    /// As who asked first wants it: as whom its sources are asked.
    pub(super) wanted: Wanted,
    /// Where whoever asked first begins to read; `u64::MAX` for somewhere at the end.
    pub(super) begun_at: u64,
    /// What holds it back while nobody but who began it waits for its bytes.
    pace: Option<Arc<Pace>>,
    /// The pull for which it began.
    pub(super) trace: Trace,
    /// What readers far ahead wait for.
    pub(super) wants: Wants,
    /// What came, and from where.
    pub(super) received: Received,
    /// What the registry says of who asked first, when peers have it under authorization.
    pub(super) asked: Asked,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// Peers among them.
    readers: AtomicUsize,
    peers: AtomicUsize,
    /// Those among them that are in no hurry.
    patient: AtomicUsize,
    /// Names the next reader.
    next_reader: AtomicU64,
    /// How far the nearest reader has come.
    furthest: AtomicU64,
    /// Told when the last reader leaves.
    pub(super) left: Notify,
}

/// Where a transfer stands.
#[derive(Clone)]
pub(super) enum State {
    /// No source has answered yet.
    Asking,
    /// The file grows.
    Arriving(Arriving),
    /// In the store.
    Whole(Blob),
    /// Small, verified, and in memory alone: the disk took it not.
    InMemory(Bytes, MediaType),
    /// The disk takes nothing: each reader reads from a source of its own. The first takes over what was opened.
    Unstored(Unstored),
    /// The disk failed on the way: what is there can be read, the rest comes from a source of each reader's own.
    Detached(Arriving),
    /// Over, and nothing more comes.
    Failed(Failure),
}

#[derive(Clone)]
pub(super) struct Arriving {
    pub(super) ingest: Arc<Ingest>,
    pub(super) media_type: MediaType,
    /// Nothing goes out before everything is verified: the source has lied before.
    pub(super) verify_whole: bool,
    /// The digest holds, though the blob could not be put into the store.
    pub(super) verified: bool,
}

impl Arriving {
    pub(super) const fn new(ingest: Arc<Ingest>, media_type: MediaType) -> Self {
        Self { ingest, media_type, verify_whole: false, verified: false }
    }

    /// Whether nothing may go out yet, to nobody.
    pub(super) const fn is_withheld(&self) -> bool {
        self.verify_whole && !self.verified
    }
}

#[derive(Clone)]
pub(super) struct Unstored {
    pub(super) size: Option<u64>,
    pub(super) media_type: MediaType,
    pub(super) opened: Arc<Mutex<Option<Opened>>>,
}

#[derive(Clone)]
pub(super) enum Failure {
    /// Nothing has it.
    Nothing(PullError),
    /// It began, and no source is left that goes on.
    Cut(PullError),
    /// All the bytes came, and they are wrong.
    WrongBytes,
}

/// A transfer as people see it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct UnderWay {
    /// The blob.
    pub digest: Digest,
    /// Where it was asked for first.
    pub image: String,
    /// Bytes that are here.
    pub present: u64,
    /// Bytes in all, once a source has said.
    pub size: Option<u64>,
    /// Replies that read along.
    pub readers: usize,
    /// Peers that read along.
    #[serde(default)]
    pub peers: usize,
}

impl Transfer {
    pub(super) fn new(wanted: Wanted, begun_at: u64, pace: Option<Arc<Pace>>, trace: Trace) -> Self {
        Self {
            wanted,
            begun_at,
            pace,
            trace,
            wants: Wants::default(),
            received: Received::default(),
            asked: Asked::default(),
            state: Mutex::new(State::Asking),
            changed: watch::Sender::new(()),
            readers: AtomicUsize::new(0),
            peers: AtomicUsize::new(0),
            patient: AtomicUsize::new(0),
            next_reader: AtomicU64::new(0),
            furthest: AtomicU64::new(0),
            left: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn become_(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.advanced();
    }

    /// Bytes arrived, or the state changed: whoever waits looks again.
    pub(super) fn advanced(&self) {
        self.changed.send_replace(());
    }

    /// To wait by. What changes after this call is not missed.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A reader has come to `at`.
    fn read_to(&self, at: u64) {
        self.furthest.fetch_max(at, Ordering::Relaxed);
    }

    pub(super) fn furthest(&self) -> u64 {
        self.furthest.load(Ordering::Relaxed)
    }

    /// Whether somebody reads along now, and nobody else than on this node; not who waits for the whole.
    pub(super) fn is_followed(&self) -> bool {
        self.readers() > 0 && self.peers.load(Ordering::Relaxed) == 0 && self.furthest() > 0
    }

    /// What holds it back, if it is for the background alone.
    pub(super) fn pace(&self) -> Option<&Pace> {
        self.pace.as_deref().filter(|_| self.readers() <= self.patient.load(Ordering::Acquire))
    }

    pub(super) fn readers(&self) -> usize {
        self.readers.load(Ordering::Acquire)
    }
}

/// A reader's hold on a transfer. As long as one exists, the driver doesn't give up for want of readers.
pub(super) struct Following {
    transfer: Arc<Transfer>,
    reader: ReaderId,
    who: Who,
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Somebody who waits for it.
    Caller,
    /// The background, which is in no hurry.
    Background,
    /// Another node.
    Peer,
}

impl Following {
    fn new(transfer: Arc<Transfer>, who: Who) -> Self {
        transfer.readers.fetch_add(1, Ordering::AcqRel);
        transfer.patient.fetch_add(usize::from(who == Who::Background), Ordering::AcqRel);
        transfer.peers.fetch_add(usize::from(who == Who::Peer), Ordering::Relaxed);
        let reader = transfer.next_reader.fetch_add(1, Ordering::Relaxed);
        Self { transfer, reader, who }
    }

    /// It has come to `at`.
    pub(super) fn read_to(&self, at: u64) {
        self.transfer.read_to(at);
        self.wants.read_to(self.reader, at);
    }

    /// It waits for the byte at `at`, which isn't there, and will read to `end`.
    pub(super) fn wait_for(&self, at: u64, end: u64) {
        self.wants.wait(self.reader, at, end);
    }

    /// It waits for something else than bytes.
    pub(super) fn wait_for_proof(&self) {
        self.wants.withdraw(self.reader);
    }
}

impl std::ops::Deref for Following {
    type Target = Transfer;

    fn deref(&self) -> &Transfer {
        &self.transfer
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.wants.withdraw(self.reader);
        self.peers.fetch_sub(usize::from(self.who == Who::Peer), Ordering::Relaxed);
        self.patient.fetch_sub(usize::from(self.who == Who::Background), Ordering::AcqRel);
        if self.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.left.notify_one();
        }
    }
}

/// The transfers under way, one for each digest.
#[derive(Default)]
pub(super) struct Transfers(Mutex<HashMap<Digest, Arc<Transfer>>>);

impl Transfers {
    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Follows the transfer of `digest`, which `begin` starts if there is none.
    pub(super) fn follow(&self, digest: Digest, who: Who, begin: impl FnOnce() -> Arc<Transfer>) -> Following {
        let mut transfers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let transfer = match transfers.entry(digest) {
            Entry::Occupied(transfer) => Arc::clone(transfer.get()),
            Entry::Vacant(place) => Arc::clone(place.insert(begin())),
        };
        // Counted under the lock: the driver of a transfer without readers takes it off the map under the same lock.
        Following::new(transfer, who)
    }

    /// Has a peer follow the transfer of `digest`, if there is one that `suits`.
    pub(super) fn join(&self, digest: &Digest, suits: impl FnOnce(&Transfer) -> bool) -> Option<Following> {
        let transfers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let transfer = transfers.get(digest).filter(|transfer| suits(transfer))?;
        Some(Following::new(Arc::clone(transfer), Who::Peer))
    }

    /// Takes it off: who comes from now on begins a new one.
    pub(super) fn remove(&self, digest: &Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    /// Takes it off if nobody reads it.
    pub(super) fn remove_unread(&self, digest: &Digest) -> bool {
        let mut transfers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match transfers.entry(*digest) {
            Entry::Occupied(transfer) if transfer.get().readers() == 0 => {
                transfer.remove();
                true
            }
            _ => false,
        }
    }

    pub(super) fn under_way(&self) -> Vec<UnderWay> {
        let transfers: Vec<_> = self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let row = |transfer: &Arc<Transfer>| {
            let (present, size) = match transfer.state() {
                State::Arriving(arriving) => (arriving.ingest.present(), Some(arriving.ingest.size())),
                _ => (0, None),
            };
            let image = transfer.wanted.place.to_string();
            let peers = transfer.peers.load(Ordering::Relaxed);
            let readers = transfer.readers().saturating_sub(peers);
            UnderWay { digest: transfer.wanted.digest, image, present, size, readers, peers }
        };
        transfers.iter().map(row).collect()
    }
}
