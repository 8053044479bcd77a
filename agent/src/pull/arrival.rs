//! A blob on its way into its file: workers that each read a claim from a source, and the loop that serves them.
//!
//! The loop is one future on one thread: what a worker receives is written and hashed right where it came, and nothing
//! is shared but with readers. It ends when everything is there, or nobody has the rest.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::MissedTickBehavior;

use super::Inner;
use super::blame::Suspects;
use super::claims::{ClaimId, Claims, NEAR};
use super::direct::{Frames, Opened, SILENT, silent};
use super::gauge::{Gauge, Reading};
use super::sources::{self, Sources};
use super::transfer::{Arriving, State, Transfer};
use super::worker::{self, Step, Worker};
use crate::store::Ingest;
use crate::upstream::{Part, Upstream, UpstreamError};

/// A transfer that nobody reads any more is given up after this time, unless it is far along.
const UNREAD_FOR: Duration = Duration::from_secs(10);
/// Bytes left to fetch with which a transfer counts as far along, however long the blob is.
const NEARLY_THERE: u64 = 32 << 20;
/// How far a transfer runs ahead of its nearest reader at full speed, in bytes.
const FAR_AHEAD: u64 = 2 << 20;
/// What one of several connections fetches at a time, in bytes: each costs a request, and what lies between the frontier
/// and the furthest of them is bytes that no reader can have yet.
const PIECE: u64 = 8 << 20;
/// What is fetched at a time for a reader far ahead, in bytes.
pub(super) const WANTED: u64 = 4 << 20;
/// How often workers are judged, and their number.
const TICK: Duration = Duration::from_millis(100);
/// After a gap between two ticks longer than this, it was we who didn't read.
const STUCK: Duration = Duration::from_secs(1);
/// A source that sends less than this, in bytes a second, is left, when another one may do better: a layer of 100 MiB
/// would take half an hour.
const CRAWL: u64 = 64 << 10;
/// How long an upstream that wants no more connections is left in peace.
const CROWDED: Duration = Duration::from_secs(5);

/// How it ended.
pub(super) enum Arrived {
    /// Everything is there, and hashed.
    Whole,
    /// No source is left that goes on.
    Cut,
    /// The source gave up, and no other may add to its bytes.
    NotFromOne,
    /// The disk failed.
    Disk(io::Error),
    /// Nobody reads, and it is off the map.
    Unread,
}

pub(super) struct Arrival<'a> {
    pull: &'a Arc<Inner>,
    transfer: &'a Transfer,
    arriving: Arriving,
    sources: &'a mut Sources,
    suspects: &'a mut Suspects,
    claims: Claims,
    workers: Vec<Worker>,
    /// Whose turn among them it is.
    turn: usize,
    gauge: Gauge,
    /// The first byte that isn't there.
    frontier: u64,
    /// Bytes that have come.
    gained: u64,
    last_gain: Instant,
    /// Whether a worker has had to wait for readers since the gauge was last told.
    was_ahead: bool,
    last_tick: Instant,
    /// When another round may begin, after one that was in vain.
    retry_at: Option<Instant>,
    /// An upstream that delivers wants no more connections until then.
    crowded_until: Option<Instant>,
}

impl<'a> Arrival<'a> {
    /// An arrival into `arriving`, whose readers know of it.
    pub(super) fn new(
        pull: &'a Arc<Inner>,
        transfer: &'a Transfer,
        arriving: Arriving,
        sources: &'a mut Sources,
        suspects: &'a mut Suspects,
    ) -> Self {
        let now = Instant::now();
        let mut arrival = Self {
            pull,
            transfer,
            arriving,
            sources,
            suspects,
            claims: Claims::default(),
            workers: Vec::new(),
            turn: 0,
            gauge: Gauge::new(now),
            frontier: 0,
            gained: 0,
            last_gain: now,
            was_ahead: false,
            last_tick: now,
            retry_at: None,
            crowded_until: None,
        };
        arrival.follow_frontier();
        arrival
    }

    /// What arrives, for its end.
    pub(super) fn into_arriving(self) -> Arriving {
        self.arriving
    }

    /// Takes over the answer with which it began: to the request for bytes from `from` on.
    pub(super) fn employ(&mut self, source: Arc<Upstream>, opened: Opened, from: u64) {
        let claim = if opened.offset < from {
            self.sources.ignores_ranges(&source);
            self.claims.take(|at| self.arriving.ingest.gap(at), 0, u64::MAX)
        } else {
            let most = opened.end.map_or(u64::MAX, |end| end.saturating_sub(from));
            self.claims.take(|at| self.arriving.ingest.gap(at), from, most)
        };
        if let Some(claim) = claim {
            self.workers.push(Worker::with(source, opened, claim));
        }
    }

    /// Runs until it has ended.
    pub(super) async fn run(&mut self) -> Arrived {
        let unread = unread(self.transfer, Arc::clone(&self.arriving.ingest));
        tokio::pin!(unread);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(ended) = self.put_to_work() {
                return ended;
            }
            if self.workers.is_empty() && self.retry_at.is_none() {
                return finish_hashing(&self.arriving.ingest).await;
            }
            // Until the number of workers, or what they should do, may have changed.
            loop {
                tokio::select! {
                    biased;
                    (index, step) = worker::next(&mut self.workers, &mut self.turn) => {
                        let now = Instant::now();
                        match self.step(now, index, step) {
                            Ok(true) => {}
                            Ok(false) => break,
                            Err(ended) => return ended,
                        }
                        // A source that always has something ready leaves no other branch its turn.
                        if now.saturating_duration_since(self.last_tick) >= TICK && self.judge(now) {
                            break;
                        }
                    }
                    () = self.transfer.wants.changed() => break,
                    _ = tick.tick() => {
                        let now = Instant::now();
                        if now > self.last_gain + self.pull.options.patience() {
                            return Arrived::Cut;
                        }
                        if self.judge(now) {
                            break;
                        }
                    }
                    () = &mut unread => {
                        if self.pull.transfers.remove_unread(&self.transfer.wanted.digest) {
                            tracing::debug!(digest = %self.transfer.wanted.digest, "nobody reads it any more; left where it stands");
                            return Arrived::Unread;
                        }
                        unread.set(self::unread(self.transfer, Arc::clone(&self.arriving.ingest)));
                    }
                }
            }
        }
    }

    /// Gives work to as many workers as there should be: first what readers far ahead wait for, then what comes next.
    fn put_to_work(&mut self) -> Result<(), Arrived> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        if self.retry_at.take().is_some() {
            self.sources.begin_round();
        }
        loop {
            let Some(source) = self.sources.next() else { return self.out_of_sources() };
            if !self.suspects.admits(&source) {
                return if self.workers.is_empty() { Err(Arrived::NotFromOne) } else { Ok(()) };
            }
            if self.workers.len() >= self.limit(&source) {
                self.make_room();
                return Ok(());
            }
            let rangeless = self.sources.is_rangeless(&source);
            let wanted = if rangeless { None } else { self.claim_wanted() };
            let Some(claim) = wanted.or_else(|| self.claim_next(rangeless)) else { return Ok(()) };
            let left = self.claims.left(claim);
            let part = if rangeless {
                Part::WHOLE
            } else {
                Part { from: left.start, to: (left.end < self.arriving.ingest.size()).then_some(left.end) }
            };
            self.workers.push(Worker::ask(source, self.transfer.wanted.clone(), part, claim));
        }
    }

    /// The most connections to an upstream.
    fn limit(&self, source: &Arc<Upstream>) -> usize {
        if self.sources.is_rangeless(source) || self.crowded_until.is_some_and(|until| Instant::now() < until) {
            return 1;
        }
        sources::ranges_at_once(source)
    }

    fn claim_wanted(&mut self) -> Option<ClaimId> {
        let ingest = &self.arriving.ingest;
        let claims = &mut self.claims;
        let mut wants = self.transfer.wants.all().into_iter();
        wants.find_map(|want| claims.take_wanted(|at| ingest.gap(at), want.at, want.end, WANTED))
    }

    fn claim_next(&mut self, rangeless: bool) -> Option<ClaimId> {
        let width = self.gauge.width();
        if self.workers.len() >= width && !self.workers.is_empty() && self.is_served(self.frontier) {
            return None;
        }
        if width > 1 {
            // Who came first has all of it.
            self.claims.cap(PIECE);
        }
        let piecewise = !rangeless && (width > 1 || !self.transfer.wants.is_empty());
        let most = if piecewise { PIECE } else { u64::MAX };
        self.claims.take(|at| self.arriving.ingest.gap(at), self.frontier, most)
    }

    fn is_served(&self, at: u64) -> bool {
        self.workers.iter().any(|worker| self.claims.left(worker.claim).contains(&at))
    }

    /// Every connection that there may be is at work. A reader far ahead has to wait for one of them, and shall not have
    /// to wait for the end of the blob.
    fn make_room(&mut self) {
        if !self.transfer.wants.is_empty() {
            self.claims.cap(WANTED);
        }
    }

    /// This round is over, and was in vain.
    fn out_of_sources(&mut self) -> Result<(), Arrived> {
        if !self.workers.is_empty() {
            return Ok(());
        }
        if self.arriving.ingest.gap(0).is_none() {
            return Ok(());
        }
        let retry_at = Instant::now() + self.sources.pause();
        if retry_at > self.last_gain + self.pull.options.resume_within {
            return Err(Arrived::Cut);
        }
        self.retry_at = Some(retry_at);
        Ok(())
    }

    /// One worker's step. `Ok(false)` when it has ended, and there may be something else to do.
    fn step(&mut self, now: Instant, index: usize, step: Step) -> Result<bool, Arrived> {
        match step {
            Step::Frame(frames, Ok(Some(bytes))) => self.take(now, index, frames, bytes),
            Step::Frame(frames, Ok(None)) => {
                let at = self.claims.left(self.workers[index].claim).start;
                self.failed(index, frames.cut(at));
                Ok(false)
            }
            Step::Frame(_, Err(error)) => {
                self.failed(index, error);
                Ok(false)
            }
            Step::Opened(Ok(opened)) => Ok(self.opened(now, index, opened)),
            Step::Opened(Err(error)) => {
                let worker = self.dismiss(index);
                let open =
                    self.workers.iter().filter(|w| w.is_reading && Arc::ptr_eq(&w.source, &worker.source)).count();
                if open > 0 && !error.is_answer() {
                    // It delivers; it only wants no more connections.
                    tracing::debug!(upstream = worker.source.name(), open, error = %error, "no more connections");
                    self.gauge.refused(now, open);
                    self.crowded_until = Some(now + CROWDED);
                } else {
                    self.sources.failed(&worker.source, error);
                }
                Ok(false)
            }
        }
    }

    fn failed(&mut self, index: usize, error: UpstreamError) {
        let worker = self.dismiss(index);
        self.sources.failed(&worker.source, error);
        if self.suspects.must_be_alone() {
            self.sources.stay_with(&worker.source);
        }
    }

    /// The source of a worker has answered. `false` when it is no use.
    fn opened(&mut self, now: Instant, index: usize, opened: Opened) -> bool {
        let (source, claim) = (Arc::clone(&self.workers[index].source), self.workers[index].claim);
        let size = self.arriving.ingest.size();
        if opened.size.is_some_and(|says| says != size) {
            self.dismiss(index);
            self.sources.failed(&source, source.wrong_answer(format!("says another length than {size} bytes")));
            return false;
        }
        let left = self.claims.left(claim);
        if opened.offset < left.start && !self.sources.is_rangeless(&source) && opened.offset + NEAR < left.start {
            // It would have to be read from the beginning: only if nobody else has ranges, and by one alone.
            self.sources.ignores_ranges(&source);
            if self.sources.another_may_know_ranges() || self.workers.len() > 1 {
                self.dismiss(index);
                self.sources.leave(&source);
                return false;
            }
            self.claims.release(claim);
            let Some(all) = self.claims.take(|at| self.arriving.ingest.gap(at), 0, u64::MAX) else { return false };
            self.workers[index].claim = all;
        }
        let left = self.claims.left(self.workers[index].claim);
        if self.suspects.take_from(&source) && !self.arriving.verify_whole {
            self.arriving.verify_whole = true;
            self.transfer.become_(State::Arriving(self.arriving.clone()));
        }
        let worker = &mut self.workers[index];
        worker.skip = left.start.saturating_sub(opened.offset);
        worker.is_reading = true;
        worker.watch_anew(now);
        worker.read_on(opened.into_frames(), false);
        true
    }

    /// Writes, tells the readers, hashes. May block on the disk: lanes are there for it.
    fn take(&mut self, now: Instant, index: usize, frames: Frames, mut bytes: Bytes) -> Result<bool, Arrived> {
        let worker = &mut self.workers[index];
        worker.received(now, bytes.len() as u64);
        self.sources.delivered(&worker.source, bytes.len() as u64);
        self.last_gain = now;
        let skipped = worker.skip.min(bytes.len() as u64);
        worker.skip -= skipped;
        bytes = bytes.split_off(skipped as usize);
        let left = self.claims.left(worker.claim);
        if left.end == self.arriving.ingest.size() && bytes.len() as u64 > left.end - left.start {
            self.failed(index, frames.too_long());
            return Ok(false);
        }
        // Beyond the claim they are another's.
        bytes.truncate(usize::try_from(left.end - left.start).unwrap_or(usize::MAX));
        if let Err(e) = self.write(left.start, &bytes) {
            return Err(Arrived::Disk(e));
        }
        self.gained += bytes.len() as u64;
        self.follow_frontier();
        let is_ahead = self.is_ahead();
        self.was_ahead |= is_ahead;
        let worker = &mut self.workers[index];
        if self.claims.advance(worker.claim, bytes.len() as u64) {
            self.workers.swap_remove(index);
            return Ok(false);
        }
        worker.read_on(frames, is_ahead);
        Ok(true)
    }

    fn write(&self, at: u64, bytes: &Bytes) -> io::Result<()> {
        let parts = std::slice::from_ref(bytes);
        let were_there = self.arriving.ingest.write(at, parts)?;
        self.transfer.advanced();
        self.arriving.ingest.hash(at, if were_there == 0 { parts } else { &[] }).map(|_more| ())
    }

    fn follow_frontier(&mut self) {
        self.frontier = self.arriving.ingest.first_gap(self.frontier).unwrap_or(self.arriving.ingest.size());
        self.transfer.wants.reached(self.frontier);
    }

    /// Whether even the nearest reader is far behind. On few cores a transfer that races ahead takes the CPU from the
    /// reader that it serves, and ends while that one still has most of its way to go.
    fn is_ahead(&self) -> bool {
        self.transfer.is_followed() && self.frontier.saturating_sub(self.transfer.furthest()) > FAR_AHEAD
    }

    /// Looks after the workers. `true` when there may be something else to do.
    fn judge(&mut self, now: Instant) -> bool {
        let blocked = now.saturating_duration_since(self.last_tick) > STUCK;
        self.last_tick = now;
        if blocked {
            self.last_gain = now;
            self.workers.iter_mut().for_each(|worker| worker.watch_anew(now));
            return true;
        }
        let workers = self.workers.len();
        if !self.suspects.must_be_alone() {
            self.leave_the_slow(now);
        }
        let left = self.arriving.ingest.size().saturating_sub(self.frontier);
        let limit = self.sources.next().map_or(1, |source| self.limit(&source));
        let in_demand = !std::mem::take(&mut self.was_ahead);
        let reading = Reading { now, bytes: self.gained, left, in_demand, limit };
        let resized = self.gauge.measure(reading);
        resized || self.workers.len() < workers || self.workers.is_empty()
    }

    /// Dismisses workers whose source is silent or crawls, where another source is likely to do better.
    fn leave_the_slow(&mut self, now: Instant) {
        let mut index = 0;
        while index < self.workers.len() {
            let worker = &mut self.workers[index];
            let rate = worker.rate(now);
            if worker.silent_for(now) >= SILENT && self.sources.prefer_faster(&worker.source, 0) {
                let worker = self.dismiss(index);
                self.sources.failed(&worker.source, silent(&worker.source));
            } else if let Some(rate) = rate.filter(|&rate| rate < CRAWL)
                && self.sources.prefer_faster(&worker.source, rate)
            {
                let worker = self.dismiss(index);
                self.sources.crawls(&worker.source, rate);
            } else {
                index += 1;
            }
        }
    }

    fn dismiss(&mut self, index: usize) -> Worker {
        let worker = self.workers.swap_remove(index);
        self.claims.release(worker.claim);
        worker
    }
}

/// Hashes what came ahead of the frontier, some at a time: others share this thread.
async fn finish_hashing(ingest: &Ingest) -> Arrived {
    loop {
        match ingest.hash(u64::MAX, &[]) {
            Ok(true) => tokio::task::yield_now().await,
            Ok(false) => return Arrived::Whole,
            Err(e) => return Arrived::Disk(e),
        }
    }
}

/// Ends when nobody has read for a while, unless the transfer is far along.
async fn unread(transfer: &Transfer, ingest: Arc<Ingest>) {
    loop {
        while transfer.readers() > 0 {
            transfer.left.notified().await;
        }
        tokio::time::sleep(UNREAD_FOR).await;
        let present = ingest.present();
        let far_along = present >= ingest.size() / 2 || ingest.size() - present <= NEARLY_THERE;
        if transfer.readers() == 0 && !far_along {
            return;
        }
    }
}
