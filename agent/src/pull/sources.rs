//! Which upstream one blob is read from next.
//!
//! Upstreams are asked in rounds: each once, in the chain's order as it is at the round's beginning. A round that brought
//! bytes is followed by another at once; one that brought none, only after a pause. What was learnt of an upstream holds
//! across rounds: who doesn't have the blob, who crawls, who knows no ranges, and who broke the digest before comes
//! after those that do better.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::direct::Opened;
use super::transfer::Transfer;
use super::{Inner, PullError, Wanted};
use crate::upstream::{ErrorKind, Upstream, UpstreamError};

/// A source that sends less than this, in bytes a second, is left, when another one may do better: a layer of 100 MiB
/// would take half an hour.
pub(super) const CRAWL: u64 = 64 << 10;
/// How long a source's rate is watched before it is judged.
pub(super) const WATCH: Duration = Duration::from_secs(5);
/// A round that brought less than this, in bytes, has brought nothing: otherwise an upstream that sends one byte and
/// closes would be asked without end.
const FRUITFUL: u64 = 64 << 10;
/// The pause after a first round without fruit; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// By this much another upstream must be faster for one that crawls to be left for it.
const FASTER: u64 = 2;

/// The upstreams of one blob, as one transfer knows them.
pub(super) struct Sources {
    pull: Arc<Inner>,
    wanted: Wanted,
    /// Whose they are, if not a single reader's.
    transfer: Option<Arc<Transfer>>,
    known: Vec<Known>,
    /// Those that this round has still to ask.
    round: VecDeque<Arc<Upstream>>,
    /// The one that is asked now.
    current: Option<Arc<Upstream>>,
    /// Bytes that came in this round.
    gained: u64,
    /// Rounds without fruit since the last with.
    fruitless: u32,
    /// Some were passed over in this round, near their limits as they are, since nobody waits for the bytes.
    has_spared: bool,
}

/// What was learnt of an upstream.
struct Known {
    upstream: Arc<Upstream>,
    said: Option<Arc<UpstreamError>>,
    /// It failed, and hasn't delivered since.
    failed: bool,
    /// It says that it doesn't have the blob, or doesn't give it.
    refuses: bool,
    /// It crawled, at so many bytes a second.
    crawled: Option<u64>,
    /// It sends the whole where a part is asked for.
    rangeless: bool,
}

impl Sources {
    /// For a reader of its own.
    pub(super) fn new(pull: Arc<Inner>, wanted: Wanted) -> Self {
        Self::with(pull, wanted, None)
    }

    /// For a transfer. As long as that is for the background alone, upstreams that are near their limits are left alone.
    pub(super) fn of(pull: Arc<Inner>, transfer: &Arc<Transfer>) -> Self {
        Self::with(pull, transfer.wanted.clone(), Some(Arc::clone(transfer)))
    }

    fn with(pull: Arc<Inner>, wanted: Wanted, transfer: Option<Arc<Transfer>>) -> Self {
        let mut sources = Self {
            pull,
            wanted,
            transfer,
            known: Vec::new(),
            round: VecDeque::new(),
            current: None,
            gained: 0,
            fruitless: 0,
            has_spared: false,
        };
        sources.begin_round();
        sources
    }

    /// The upstream to ask now; the same again until it fails or is left. `None` when the round is over, and was in vain.
    pub(super) fn next(&mut self) -> Option<Arc<Upstream>> {
        if self.current.is_none() && self.round.is_empty() && self.gained >= FRUITFUL {
            self.begin_round();
        }
        self.next_of_round()
    }

    /// The same, without another round.
    pub(super) fn next_of_round(&mut self) -> Option<Arc<Upstream>> {
        while self.current.is_none()
            && let Some(next) = self.round.pop_front()
        {
            if self.is_spared(&next) {
                self.has_spared = true;
            } else {
                self.current = Some(next);
            }
        }
        self.current.clone()
    }

    /// How long to wait before another round, when this one was in vain.
    pub(super) fn pause(&self) -> Duration {
        FIRST_PAUSE.saturating_mul(1 << self.fruitless.min(8)).min(LONGEST_PAUSE)
    }

    /// Asks the chain anew.
    pub(super) fn begin_round(&mut self) {
        self.fruitless = if self.gained >= FRUITFUL { 0 } else { self.fruitless + u32::from(!self.known.is_empty()) };
        self.gained = 0;
        self.order();
    }

    /// Begins this round anew: what was asked in it was asked in vain through no fault of theirs, or more is known of
    /// them now.
    pub(super) fn order(&mut self) {
        let mut order = self.pull.upstreams.of(&self.wanted.place.registry).in_order();
        self.known.retain(|known| order.iter().any(|upstream| Arc::ptr_eq(upstream, &known.upstream)));
        for upstream in &order {
            if self.find(upstream).is_none() {
                self.known.push(Known::new(upstream));
            }
        }
        // Who broke this very blob is asked again only when the others were all asked in vain.
        let sound = |upstream: &Arc<Upstream>| !self.pull.blame.has_broken(upstream, &self.wanted.digest);
        if self.fruitless == 0 && order.iter().any(sound) {
            order.retain(sound);
        }
        order.sort_by_cached_key(|upstream| (!sound(upstream), self.find(upstream).map(Known::rank)));
        self.round = order.into();
        self.current = None;
        self.has_spared = false;
    }

    /// Whether it is left alone, since nobody waits.
    fn is_spared(&self, upstream: &Upstream) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| transfer.pace().is_some()) && upstream.is_near_its_limit()
    }

    /// One of them began to answer: what that says of who may read the repository is learnt.
    pub(super) fn opened(&self, opened: &Opened) {
        self.pull.given(&self.wanted.place, &self.wanted.grant, opened.access);
    }

    /// An answer with the blob's length as the manifest has it that names it, where there is one.
    ///
    /// # Errors
    /// When the source says another.
    pub(super) fn hold_to_manifest(&self, source: &Upstream, mut opened: Opened) -> Result<Opened, UpstreamError> {
        let Some(expected) = self.pull.sizes.of(&self.wanted.place, &self.wanted.digest) else { return Ok(opened) };
        let says = *opened.size.get_or_insert(expected);
        if says == expected {
            return Ok(opened);
        }
        Err(source.wrong_answer(format!("says that the blob has {says} bytes, where its manifest says {expected}")))
    }

    /// Bytes came from it.
    pub(super) fn delivered(&mut self, upstream: &Arc<Upstream>, bytes: u64) {
        self.gained += bytes;
        if self.gained >= FRUITFUL
            && let Some(known) = self.find_mut(upstream)
        {
            known.failed = false;
        }
    }

    /// It gave no answer, or broke one off.
    pub(super) fn failed(&mut self, upstream: &Arc<Upstream>, error: UpstreamError) {
        tracing::debug!(digest = %self.wanted.digest, upstream = upstream.name(), error = %error, "a source failed");
        if let Some(known) = self.find_mut(upstream) {
            known.failed = true;
            known.refuses |= error.is_answer();
            known.said = Some(Arc::new(error));
        }
        self.leave(upstream);
    }

    /// It is left for another: it sends so few bytes a second.
    pub(super) fn crawls(&mut self, upstream: &Arc<Upstream>, rate: u64) {
        tracing::debug!(digest = %self.wanted.digest, upstream = upstream.name(), rate, "a source crawls, and is left");
        if let Some(known) = self.find_mut(upstream) {
            known.crawled = Some(rate);
        }
        self.leave(upstream);
    }

    /// It sent the whole where a part was asked for.
    pub(super) fn ignores_ranges(&mut self, upstream: &Arc<Upstream>) {
        if let Some(known) = self.find_mut(upstream) {
            known.rangeless = true;
        }
    }

    /// Whether it is known to send the whole where a part is asked for.
    pub(super) fn is_rangeless(&self, upstream: &Arc<Upstream>) -> bool {
        self.find(upstream).is_some_and(|known| known.rangeless)
    }

    /// Asks another one next, if it is the one that is asked now.
    pub(super) fn leave(&mut self, upstream: &Arc<Upstream>) {
        self.current.take_if(|current| Arc::ptr_eq(current, upstream));
    }

    /// Stays with one of those that were asked at the same time. Those that were asked for nothing are still there, for
    /// when it fails.
    pub(super) fn settle(&mut self, upstream: &Arc<Upstream>) {
        let unasked = |known: &&Known| {
            !known.failed
                && !Arc::ptr_eq(&known.upstream, upstream)
                && !self.round.iter().any(|other| Arc::ptr_eq(other, &known.upstream))
                && !self.pull.blame.has_broken(&known.upstream, &self.wanted.digest)
        };
        let unasked: Vec<_> = self.known.iter().filter(unasked).map(|known| Arc::clone(&known.upstream)).collect();
        for other in unasked.into_iter().rev() {
            self.round.push_front(other);
        }
        self.round.retain(|other| !Arc::ptr_eq(other, upstream));
        self.current = Some(Arc::clone(upstream));
    }

    /// Asks it again, if it brought something: nobody else may go on in its place.
    pub(super) fn stay_with(&mut self, upstream: &Arc<Upstream>) {
        if std::mem::take(&mut self.gained) >= FRUITFUL {
            self.current = Some(Arc::clone(upstream));
        }
    }

    /// Makes the upstream that is likely to do better than one that sends `rate` bytes a second the next one to be
    /// asked. `false` when there is none.
    pub(super) fn prefer_faster(&mut self, than: &Arc<Upstream>, rate: u64) -> bool {
        if self.current.as_ref().is_some_and(|current| !Arc::ptr_eq(current, than)) {
            // Left already, by another of its connections.
            return true;
        }
        let is_better = |known: &&Known| {
            !Arc::ptr_eq(&known.upstream, than)
                && !known.failed
                && !known.refuses
                && known.upstream.is_available()
                && !self.is_spared(&known.upstream)
                && known.crawled.is_none_or(|crawled| crawled > rate.saturating_mul(FASTER))
                && !self.pull.blame.has_broken(&known.upstream, &self.wanted.digest)
        };
        let Some(better) = self.known.iter().filter(is_better).min_by_key(|known| known.rank()) else { return false };
        let better = Arc::clone(&better.upstream);
        self.round.retain(|upstream| !Arc::ptr_eq(upstream, &better));
        self.round.push_front(better);
        true
    }

    /// Whether somebody is left who may know ranges.
    pub(super) fn another_may_know_ranges(&self) -> bool {
        self.known.iter().any(|known| !known.rangeless && !known.failed && !known.refuses)
    }

    /// Whether one of them failed so.
    pub(super) fn said(&self, kind: &ErrorKind) -> bool {
        self.known.iter().any(|known| known.said.as_ref().is_some_and(|said| said.kind() == kind))
    }

    /// The one error that all of them amount to.
    pub(super) fn verdict(&self) -> PullError {
        if self.has_spared {
            return PullError::Spared;
        }
        PullError::from_all(self.known.iter().filter_map(|known| known.said.clone()).collect())
    }

    fn find(&self, upstream: &Arc<Upstream>) -> Option<&Known> {
        self.known.iter().find(|known| Arc::ptr_eq(&known.upstream, upstream))
    }

    fn find_mut(&mut self, upstream: &Arc<Upstream>) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| Arc::ptr_eq(&known.upstream, upstream))
    }
}

impl Known {
    fn new(upstream: &Arc<Upstream>) -> Self {
        let upstream = Arc::clone(upstream);
        Self { upstream, said: None, failed: false, refuses: false, crawled: None, rangeless: false }
    }

    /// The least is asked first; among equals the chain's order holds.
    fn rank(&self) -> (bool, bool, u64) {
        (self.refuses, self.rangeless, self.crawled.map_or(0, |rate| u64::MAX - rate))
    }
}
