//! Who fetches what.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Arrival, Arrived, WANTED};
use crate::peers::Turn;
use crate::pull::claims::ClaimId;
use crate::pull::source::Source;
use crate::pull::worker::Worker;
use crate::store::CHUNK;
use crate::upstream::{Part, Upstream};

/// What one of several connections fetches at a time, in bytes: each costs a request, and what lies between the frontier
/// and the furthest of them is bytes that no reader can have yet.
const PIECE: u64 = 8 << 20;
/// The same under a lease: others read along the frontier, and would wait while pieces beyond it are filled. When the
/// lease passes on, the next holder begins at the frontier, and fetches what lies beyond again.
const LEASED_PIECE: u64 = CHUNK;
/// Connections under a lease: of several that share a link, each brings its piece more slowly, and the frontier, which is
/// what others read along, moves by jumps.
const LEASED_CONNECTIONS: usize = 2;
/// What a worker reaches within this time is not worth another request.
const SOON: Duration = Duration::from_millis(50);
/// Where a part ends for now, and the next one may be asked for: its answer takes a moment, in which nothing would come.
const NEXT_IN: Duration = Duration::from_millis(250);

impl Arrival<'_> {
    /// Gives work to as many workers as there should be: first what readers far ahead wait for, then what comes next, from
    /// whom the turn names.
    pub(super) fn put_to_work(&mut self) -> Result<(), Arrived> {
        self.obey();
        let upto = match &self.turn_is {
            Turn::Upstream { upto } => *upto,
            Turn::Wait => 0,
            Turn::Peer(peer) => {
                let peer = peer.clone();
                self.read_from(&peer);
                0
            }
        };
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        if self.retry_at.take().is_some() {
            self.sources.begin_round();
        }
        while self.frontier < upto || self.serves_ahead() {
            self.leave_resting();
            let Some(source) = self.sources.next() else { return self.out_of_sources() };
            if !self.suspects.admits(&Source::Upstream(Arc::clone(&source))) {
                return if self.workers.is_empty() { Err(Arrived::NotFromOne) } else { Ok(()) };
            }
            let rangeless = self.sources.is_rangeless(&source);
            if self.workers.len() >= self.limit(&source) {
                if !rangeless {
                    self.make_room();
                }
                return Ok(());
            }
            let wanted = if rangeless || !self.serves_ahead() { None } else { self.claim_wanted() };
            let is_out_of_turn = wanted.is_some();
            let Some(claim) = wanted.or_else(|| self.claim_next(rangeless, upto)) else { return Ok(()) };
            let left = self.claims.left(claim);
            let part = if rangeless {
                Part::WHOLE
            } else {
                Part { from: left.start, to: (left.end < self.arriving.ingest.size()).then_some(left.end) }
            };
            let worker = Worker::ask(source, self.transfer.wanted.clone(), part, claim);
            self.workers.push(if is_out_of_turn { worker.out_of_turn() } else { worker });
        }
        Ok(())
    }

    /// Asks another one next if the one that is asked now wants to be left alone. Whether it is.
    pub(super) fn leave_resting(&mut self) -> bool {
        !self.suspects.must_be_alone() && self.sources.leave_resting()
    }

    /// The most connections to an upstream.
    pub(super) fn limit(&self, source: &Arc<Upstream>) -> usize {
        if self.sources.is_rangeless(source) || self.crowded_until.is_some_and(|until| Instant::now() < until) {
            return 1;
        }
        let open = self.workers.iter().filter(|worker| worker.is_of(source)).count();
        let most = source.ranges_at_once();
        let most = if self.is_leased() {
            // Where other transfers run, the link is theirs too, and one more connection takes from them.
            (most / self.pull.transfers.len().max(1)).clamp(1, LEASED_CONNECTIONS)
        } else {
            most
        };
        most.min(source.ranges_now(open))
    }

    /// Whether a range is fetched for others too.
    pub(super) const fn is_leased(&self) -> bool {
        matches!(self.turn_is, Turn::Upstream { upto } if upto != u64::MAX)
    }

    pub(super) fn claim_wanted(&mut self) -> Option<ClaimId> {
        if self.transfer.wants.is_empty() {
            return None;
        }
        let near = self.reached_in(SOON);
        let ingest = &self.arriving.ingest;
        let claims = &mut self.claims;
        let mut wants = self.transfer.wants.all().into_iter();
        wants.find_map(|want| claims.take_wanted(|at| ingest.gap(at), want.at..want.end, WANTED, near))
    }

    /// How far one of the workers comes in a time, in bytes, by what all have brought so far.
    fn reached_in(&self, time: Duration) -> u64 {
        let rate = self.gained as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        (rate * time.as_secs_f64()) as u64 / self.workers.len().max(1) as u64
    }

    /// What comes next, before `upto`.
    fn claim_next(&mut self, rangeless: bool, upto: u64) -> Option<ClaimId> {
        if self.frontier >= upto {
            return None;
        }
        let width = self.gauge.width();
        // One more than that when a part ends: the answer to the next request takes a moment.
        let is_ending = !rangeless && self.part_ends_soon();
        if self.workers.len() >= width && !self.workers.is_empty() && self.is_served(self.frontier) && !is_ending {
            return None;
        }
        let piece = if upto == u64::MAX { PIECE } else { LEASED_PIECE };
        if width > 1 {
            // Who came first has all of it.
            self.claims.cap(piece);
        }
        let piecewise = !rangeless && (width > 1 || !self.transfer.wants.is_empty());
        let most = if piecewise { piece } else { u64::MAX };
        let upto = if rangeless { u64::MAX } else { upto };
        self.claims.take(|at| self.arriving.ingest.gap(at), self.frontier..upto, most)
    }

    fn is_served(&self, at: u64) -> bool {
        self.workers.iter().any(|worker| self.claims.left(worker.claim).contains(&at))
    }

    /// Whether whoever brings what comes next is nearly through with a part after which the turn has another.
    pub(super) fn part_ends_soon(&self) -> bool {
        let Turn::Upstream { upto } = self.turn_is else { return false };
        if upto == u64::MAX || self.workers.len() != self.gauge.width() {
            return false;
        }
        let (soon, end) = (self.reached_in(NEXT_IN), upto.min(self.arriving.ingest.size()));
        let mut claims = self.workers.iter().map(|worker| self.claims.left(worker.claim));
        let next = claims.find(|left| left.contains(&self.frontier));
        next.is_some_and(|left| left.end - left.start <= soon && left.end < end)
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
        if !self.workers.is_empty() || self.arriving.ingest.gap(0).is_none() {
            return Ok(());
        }
        if matches!(self.turn_is, Turn::Upstream { .. }) {
            // Another may have it.
            self.follow.failed(&self.sources.verdict().as_failure());
            self.obey();
        }
        let retry_at = Instant::now() + self.sources.pause();
        if matches!(self.turn_is, Turn::Upstream { .. }) {
            if self.gained == 0 && self.arriving.ingest.present() == 0 {
                // Nobody has been answered yet, and who asks has other hosts to ask.
                return Err(Arrived::Cut);
            }
            if retry_at > self.last_gain + self.pull.options.resume_within {
                return Err(Arrived::Cut);
            }
        } else if let Turn::Peer(peer) = &self.turn_is {
            let peer = peer.clone();
            self.read_from(&peer);
        }
        self.retry_at = Some(retry_at);
        Ok(())
    }
}
