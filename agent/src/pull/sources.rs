//! Which upstream one blob is read from next.
//!
//! Upstreams are asked in rounds: each once, in the chain's order as it is at the round's beginning. A round that brought
//! bytes is followed by another at once; one that brought none, only after a pause. What was learnt of an upstream holds
//! across rounds: who doesn't have the blob, who crawls, who knows no ranges, and who broke the digest before comes
//! after those that do better.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::direct::Opened;
use super::transfer::Transfer;
use super::{Inner, Kind, PullError, Wanted};
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
/// One that failed is well again if it is still available after this time: then it may be better than one that crawls.
const FORGIVEN_AFTER: Duration = WATCH;
/// One that crawled may do better after this time.
const CRAWLED_FOR: Duration = Duration::from_secs(60);
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
    /// Bytes are there that came from elsewhere: an earlier transfer left them, or a peer gave them.
    has_others: bool,
}

/// What was learnt of an upstream.
struct Known {
    upstream: Arc<Upstream>,
    said: Option<Arc<UpstreamError>>,
    /// When it failed, if it hasn't delivered since.
    failed: Option<Instant>,
    /// Bytes of its are there.
    gave: bool,
    /// It says that it doesn't have the blob, or doesn't give it.
    refuses: bool,
    /// It crawled, at so many bytes a second, and when.
    crawled: Option<(u64, Instant)>,
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
            has_others: false,
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
            } else if !self.would_spoil(&next) {
                self.current = Some(next);
            }
        }
        self.current.clone()
    }

    /// The next of this round to be asked besides one that is slow, who may yet answer: nobody who wants to be left alone
    /// is asked for that, nor who broke this digest.
    pub(super) fn next_beside(&mut self) -> Option<Arc<Upstream>> {
        let suits = |next: &Arc<Upstream>| !next.rests() && !self.is_spared(next) && !self.has_broken(next);
        let at = self.round.iter().position(suits)?;
        self.round.remove(at)
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
        let is_well = |known: &Known| {
            let upstream = &known.upstream;
            upstream.is_available() && !known.refuses && !self.has_broken(upstream) && !self.is_suspect(upstream)
        };
        let trusts = self.known.iter().any(is_well);
        order.sort_by_cached_key(|upstream| self.find(upstream).map(|known| self.rank(known, trusts)));
        self.round = order.into();
        self.current = None;
        self.has_spared = false;
    }

    /// The least is asked first; among equals the chain's order holds. Who broke this very blob comes last, and a suspect
    /// after one that is to be trusted, where there is one.
    fn rank(&self, known: &Known, trusts: bool) -> (bool, bool, bool, bool, u64) {
        let upstream = &known.upstream;
        let is_last = trusts && self.is_suspect(upstream);
        let crawled = known.crawled().map_or(0, |rate| u64::MAX - rate);
        (self.has_broken(upstream), known.refuses, is_last, known.rangeless, crawled)
    }

    /// Whether it broke this very blob.
    fn has_broken(&self, upstream: &Upstream) -> bool {
        self.pull.blame.has_broken(upstream, &self.wanted.digest)
    }

    /// Whether its bytes would have to be verified whole before any goes out, which takes longer than a caller waits.
    /// What is small always is.
    fn is_suspect(&self, upstream: &Upstream) -> bool {
        let Wanted { place, digest, kind, .. } = &self.wanted;
        let is_small = |size| size <= self.pull.options.verify_first;
        *kind == Kind::Blob
            && self.pull.blame.is_suspect(upstream)
            && !self.pull.sizes.of(place, digest).is_some_and(is_small)
    }

    /// Whether it broke this very blob, and would add to what others gave: they are asked on in its place.
    fn would_spoil(&self, upstream: &Arc<Upstream>) -> bool {
        let is_other = |known: &&Known| !Arc::ptr_eq(&known.upstream, upstream);
        let mut others = self.known.iter().filter(is_other);
        let has_others = self.has_others || others.clone().any(|known| known.gave);
        has_others && self.has_broken(upstream) && others.any(|known| !self.has_broken(&known.upstream))
    }

    /// Bytes are there that came from elsewhere.
    pub(super) const fn take_up(&mut self) {
        self.has_others = true;
    }

    /// All that was there was thrown away.
    pub(super) fn forget(&mut self) {
        self.has_others = false;
        self.known.iter_mut().for_each(|known| known.gave = false);
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
        let is_fruitful = self.gained >= FRUITFUL;
        if let Some(known) = self.find_mut(upstream) {
            known.gave = true;
            known.failed.take_if(|_| is_fruitful);
        }
    }

    /// It gave no answer, or broke one off.
    pub(super) fn failed(&mut self, upstream: &Arc<Upstream>, error: UpstreamError) {
        tracing::debug!(digest = %self.wanted.digest, upstream = upstream.name(), error = %error, "a source failed");
        if let Some(known) = self.find_mut(upstream) {
            known.failed = Some(Instant::now());
            known.refuses |= error.is_answer();
            known.said = Some(Arc::new(error));
        }
        self.leave(upstream);
    }

    /// It is left for another: it sends so few bytes a second.
    pub(super) fn crawls(&mut self, upstream: &Arc<Upstream>, rate: u64) {
        tracing::debug!(digest = %self.wanted.digest, upstream = upstream.name(), rate, "a source crawls, and is left");
        if self.transfer.as_ref().is_none_or(|transfer| transfer.pace().is_none()) {
            // It isn't we who read so slowly.
            upstream.crawled(rate);
        }
        if let Some(known) = self.find_mut(upstream) {
            known.crawled = Some((rate, Instant::now()));
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
            known.failed.is_none()
                && !Arc::ptr_eq(&known.upstream, upstream)
                && !self.round.iter().any(|other| Arc::ptr_eq(other, &known.upstream))
                && !self.has_broken(&known.upstream)
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

    /// Leaves the one that is asked now if it wants to be left alone, and another may go on. Whether it did.
    pub(super) fn leave_resting(&mut self) -> bool {
        let Some(resting) = self.current.clone().filter(|current| current.rests()) else { return false };
        let has_better = self.prefer_faster(&resting, 0);
        if has_better {
            self.leave(&resting);
        }
        has_better
    }

    /// Makes the upstream that is likely to do better than one that sends `rate` bytes a second the next one to be
    /// asked. `false` when there is none.
    pub(super) fn prefer_faster(&mut self, than: &Arc<Upstream>, rate: u64) -> bool {
        self.prefer(than, |known| known.crawled().is_none_or(|crawled| crawled > rate.saturating_mul(FASTER)))
    }

    /// The same, where somebody waits in line for one: of the others, only who has none is likely to do better.
    pub(super) fn prefer_with_room(&mut self, than: &Arc<Upstream>) -> bool {
        self.prefer(than, |known| known.upstream.has_room() && known.crawled().is_none())
    }

    fn prefer(&mut self, than: &Arc<Upstream>, does_better: impl Fn(&Known) -> bool) -> bool {
        if self.current.as_ref().is_some_and(|current| !Arc::ptr_eq(current, than)) {
            // Left already, by another of its connections.
            return true;
        }
        let is_better = |known: &&Known| {
            !Arc::ptr_eq(&known.upstream, than)
                && known.failed.is_none_or(|at| at.elapsed() >= FORGIVEN_AFTER)
                && !known.refuses
                && known.upstream.is_available()
                && !self.is_spared(&known.upstream)
                && does_better(known)
                && !self.has_broken(&known.upstream)
        };
        let better = self.known.iter().filter(is_better).min_by_key(|known| self.rank(known, true));
        let Some(better) = better else { return false };
        let better = Arc::clone(&better.upstream);
        self.round.retain(|upstream| !Arc::ptr_eq(upstream, &better));
        self.round.push_front(better);
        true
    }

    /// Whether somebody is left who may know ranges.
    pub(super) fn another_may_know_ranges(&self) -> bool {
        self.known.iter().any(|known| !known.rangeless && known.failed.is_none() && !known.refuses)
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
        let crawled = upstream.crawls_at().map(|rate| (rate, Instant::now()));
        Self { upstream, said: None, failed: None, gave: false, refuses: false, crawled, rangeless: false }
    }

    /// At how many bytes a second it crawled lately.
    fn crawled(&self) -> Option<u64> {
        self.crawled.filter(|(_, at)| at.elapsed() < CRAWLED_FOR).map(|(rate, _)| rate)
    }
}
