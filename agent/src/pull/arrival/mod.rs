//! A blob on its way into its file: workers that each read a claim from a source, and the loop that serves them.
//!
//! The loop is one future on one thread: what a worker receives is written and hashed right where it came, and nothing
//! is shared but with readers. It ends when everything is there, or nobody has the rest. Whether upstreams bring what
//! comes next, or a peer, is the cluster's to say; without one, it is always upstreams' turn.

mod assign;
mod judge;
mod obey;
mod piece;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::Inner;
use super::begin::Answered;
use super::claims::Claims;
use super::gauge::Gauge;
use super::partings::Partings;
use super::source::{Answer, Source};
use super::sources::Sources;
use super::suspects::Suspects;
use super::transfer::{Arriving, Transfer};
use super::worker::{self, PAUSE, Worker};
use crate::image::NodeId;
use crate::peers::{Follow, Peer, Turn};
use crate::store::Ingest;

/// A transfer that nobody reads any more is given up after this time, unless it is far along.
const UNREAD_FOR: Duration = Duration::from_secs(10);
/// Bytes left to fetch with which a transfer counts as far along, however long the blob is.
const NEARLY_THERE: u64 = 32 << 20;
/// How far a transfer runs ahead of its nearest reader at full speed, in bytes.
const FAR_AHEAD: u64 = 2 << 20;
/// What is fetched at a time for a reader far ahead, in bytes.
pub(in crate::pull) const WANTED: u64 = 4 << 20;
/// How often workers are judged, and their number.
const TICK: Duration = Duration::from_millis(100);

/// How it ended.
pub(in crate::pull) enum Arrived {
    /// Everything is there, and hashed.
    Whole,
    /// No source is left that goes on.
    Cut,
    /// The source gave up, and no other may add to its bytes.
    NotFromOne,
    /// A peer whose bytes are among them found that they are wrong.
    Wrong,
    /// The disk failed.
    Disk(io::Error),
    /// Nobody reads, and it is off the map.
    Unread,
}

pub(in crate::pull) struct Arrival<'a> {
    pull: &'a Arc<Inner>,
    transfer: &'a Arc<Transfer>,
    arriving: Arriving,
    sources: &'a mut Sources,
    suspects: &'a mut Suspects,
    follow: &'a mut Follow,
    /// Whose turn it was when that was last looked at.
    turn_is: Turn,
    /// A peer that failed, in a turn that may still stand.
    useless: Option<Peer>,
    /// A peer that has all of it.
    whole_peer: Option<NodeId>,
    /// Streams of peers that brought all that was asked for, to be asked what they know of the whole.
    partings: Partings,
    /// The frontier that the cluster was told of.
    told: u64,
    claims: Claims,
    workers: Vec<Worker>,
    /// Whose turn among them it is.
    turn: usize,
    gauge: Gauge,
    /// The first byte that isn't there.
    frontier: u64,
    /// Bytes that have come.
    gained: u64,
    began: Instant,
    last_gain: Instant,
    /// How far one that sends the whole was read and skipped since then, as an offset in the blob.
    skipped_to: u64,
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
    pub(in crate::pull) fn new(
        pull: &'a Arc<Inner>,
        transfer: &'a Arc<Transfer>,
        arriving: Arriving,
        (sources, suspects): (&'a mut Sources, &'a mut Suspects),
        follow: &'a mut Follow,
    ) -> Self {
        let now = Instant::now();
        let mut arrival = Self {
            pull,
            transfer,
            arriving,
            sources,
            suspects,
            turn_is: follow.turn(),
            follow,
            useless: None,
            whole_peer: None,
            partings: Partings::default(),
            told: 0,
            claims: Claims::default(),
            workers: Vec::new(),
            turn: 0,
            gauge: Gauge::new(now),
            frontier: 0,
            gained: 0,
            began: now,
            last_gain: now,
            skipped_to: 0,
            was_ahead: false,
            last_tick: now,
            retry_at: None,
            crowded_until: None,
        };
        arrival.follow_frontier();
        arrival
    }

    /// What arrives, for its end; and what there is to be asked when its bytes are wrong.
    pub(in crate::pull) fn into_parts(self) -> (Arriving, Partings) {
        (self.arriving, self.partings)
    }

    /// Takes over the answer with which it began.
    pub(in crate::pull) fn employ(&mut self, first: Answered) {
        let Answered { source, answer, from } = first;
        let (claim, gap) = (&mut self.claims, |at| self.arriving.ingest.gap(at));
        let claim = match &answer {
            Answer::Upstream(opened) if opened.offset < from => {
                self.sources.ignores_ranges(opened.upstream());
                claim.take(gap, 0..u64::MAX, u64::MAX)
            }
            Answer::Upstream(opened) => {
                let most = opened.end.map_or(u64::MAX, |end| end.saturating_sub(from));
                claim.take(gap, from..u64::MAX, most)
            }
            Answer::Peer(_) => claim.take(gap, from..u64::MAX, u64::MAX),
        };
        if let Some(claim) = claim {
            let is_ahead = matches!(source, Source::Upstream(_)) && from > self.frontier;
            let worker = Worker::with(source, answer, claim);
            self.workers.push(if is_ahead { worker.out_of_turn() } else { worker });
        }
    }

    /// Runs until it has ended.
    pub(in crate::pull) async fn run(&mut self) -> Arrived {
        let unread = unread(self.transfer, Arc::clone(&self.arriving.ingest));
        tokio::pin!(unread);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(ended) = self.put_to_work() {
                return ended;
            }
            if self.workers.is_empty() && self.arriving.ingest.gap(0).is_none() {
                self.tell_frontier(true);
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
                        let is_tick = now.saturating_duration_since(self.last_tick) >= TICK;
                        if is_tick && (self.judge(now) || self.is_told_otherwise()) {
                            break;
                        }
                    }
                    () = self.follow.changed() => break,
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

    fn follow_frontier(&mut self) {
        self.frontier = self.arriving.ingest.first_gap(self.frontier).unwrap_or(self.arriving.ingest.size());
        self.transfer.wants.reached(self.frontier);
        self.tell_frontier(false);
    }

    /// Whether even the nearest reader is far behind. On few cores a transfer that races ahead takes the CPU from the
    /// reader that it serves, and ends while that one still has most of its way to go.
    fn is_ahead(&self) -> bool {
        self.transfer.is_followed() && self.frontier.saturating_sub(self.transfer.furthest()) > FAR_AHEAD
    }

    /// How long who has just brought so many bytes rests before the next ones.
    fn rest(&self, bytes: u64, now: Instant) -> Option<Duration> {
        match self.transfer.pace() {
            Some(pace) => Some(pace.pay(bytes, now.into())),
            None => self.is_ahead().then_some(PAUSE),
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
