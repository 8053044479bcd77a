//! What comes from a source: its answer, and its bytes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Arrival, Arrived};
use crate::peers::Parted;
use crate::pull::claims::NEAR;
use crate::pull::direct::Opened;
use crate::pull::source::{Answer, AtPeer, Fault, PeerFault, Pieces, Source};
use crate::pull::worker::{Step, Worker};
use crate::upstream::Upstream;

/// How long an upstream that wants no more connections is left in peace.
const CROWDED: Duration = Duration::from_secs(5);

impl Arrival<'_> {
    /// One worker's step. `Ok(false)` when it has ended, and there may be something else to do.
    pub(super) fn step(&mut self, now: Instant, index: usize, step: Step) -> Result<bool, Arrived> {
        match step {
            Step::Piece(pieces, Ok(Some(bytes))) => return self.take(now, index, pieces, bytes),
            Step::Piece(pieces, Ok(None)) => {
                let at = self.claims.left(self.workers[index].claim).start;
                self.failed(index, pieces.cut(at));
            }
            Step::Piece(_, Err(Fault::Peer(fault))) if fault.broken().is_some() => {
                if self.broke_at_peer(index, fault) {
                    return Err(Arrived::Wrong);
                }
            }
            Step::Opened(Ok(Answer::Upstream(opened))) => return Ok(self.opened(now, index, *opened)),
            Step::Opened(Ok(Answer::Peer(answer))) => return Ok(self.opened_at_peer(now, index, answer)),
            Step::Opened(Err(Fault::Upstream(upstream, error))) => {
                self.dismiss(index);
                let is_same = |worker: &&Worker| worker.is_reading && worker.is_of(&upstream);
                let open = self.workers.iter().filter(is_same).count();
                if open > 0 && !error.is_answer() {
                    // It delivers; it only wants no more connections.
                    tracing::debug!(upstream = upstream.name(), open, error = %error, "no more connections");
                    if !self.leave_resting() {
                        self.gauge.refused(now, open);
                        self.crowded_until = Some(now + CROWDED);
                    }
                } else {
                    self.sources.failed(&upstream, error);
                }
            }
            Step::Piece(_, Err(fault)) | Step::Opened(Err(fault)) => self.failed(index, fault),
        }
        Ok(false)
    }

    fn failed(&mut self, index: usize, fault: Fault) {
        let worker = self.dismiss(index);
        match fault {
            Fault::Upstream(upstream, error) => {
                self.sources.failed(&upstream, error);
                if self.suspects.must_be_alone() {
                    self.sources.stay_with(&upstream);
                }
            }
            Fault::Peer(fault) => {
                if let Source::Peer(peer) = worker.source {
                    self.peer_failed(peer, &fault, worker.is_out_of_turn);
                }
            }
        }
    }

    /// The blob turned out wrong at a peer that it was read from. Whether that goes for what is here too: if bytes of that
    /// peer are in it, it is likely, and it shows now whose fault it is.
    fn broke_at_peer(&mut self, index: usize, fault: PeerFault) -> bool {
        let (has_given, source) = (self.workers[index].has_given(), self.workers[index].source.clone());
        if let (true, Source::Peer(peer), Some(sources)) = (has_given, source, fault.broken()) {
            self.suspects.parted(peer.node(), &Parted::Broken(sources.to_vec()));
            return true;
        }
        self.failed(index, Fault::Peer(fault));
        false
    }

    /// An upstream has answered. `false` when it is no use.
    fn opened(&mut self, now: Instant, index: usize, opened: Opened) -> bool {
        let (source, claim) = (Arc::clone(opened.upstream()), self.workers[index].claim);
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
                self.make_it_one_again(&source);
                return false;
            }
            self.claims.release(claim);
            let all = self.claims.take(|at| self.arriving.ingest.gap(at), 0..u64::MAX, u64::MAX);
            let Some(all) = all else { return false };
            self.workers[index].claim = all;
        }
        self.transfer.received.name([source.name()]);
        self.suspects.take_from(&source);
        self.verify_as_needed();
        let left = self.claims.left(self.workers[index].claim);
        let worker = &mut self.workers[index];
        worker.skip = left.start.saturating_sub(opened.offset);
        worker.begin(now, Pieces::Upstream(Box::new(opened.into_frames())));
        true
    }

    /// A peer has answered. `false` when it is no use.
    fn opened_at_peer(&mut self, now: Instant, index: usize, answer: AtPeer) -> bool {
        let (node, head, size) = (answer.node, answer.stream.head(), self.arriving.ingest.size());
        if head.size != size {
            self.failed(index, Fault::Peer(PeerFault::Length { says: head.size, size }));
            return false;
        }
        if head.whole {
            self.whole_peer = Some(node);
        }
        self.transfer.received.name(head.sources.iter().map(String::as_str));
        self.suspects.take_from_peer(node, head);
        self.verify_as_needed();
        // A whole one can serve readers far ahead too.
        let is_all = head.whole && !self.transfer.wants.is_empty();
        self.workers[index].begin(now, Pieces::Peer(answer));
        !is_all
    }

    /// A source turned out to know no ranges when a second part was asked for: the connection that sends the whole, if it
    /// is there, goes on to the end; another source may know ranges.
    fn make_it_one_again(&mut self, source: &Arc<Upstream>) {
        let same = |worker: &&Worker| worker.is_reading && worker.is_of(source);
        match self.workers.iter().find(same) {
            Some(worker) => self.claims.extend(|at| self.arriving.ingest.gap(at), worker.claim),
            None => self.sources.leave(source),
        }
    }

    /// Writes, tells the readers, hashes. May block on the disk: lanes are there for it.
    fn take(&mut self, now: Instant, index: usize, pieces: Pieces, mut bytes: Bytes) -> Result<bool, Arrived> {
        let worker = &mut self.workers[index];
        worker.received(now, bytes.len() as u64);
        let skipped = worker.skip.min(bytes.len() as u64);
        worker.skip -= skipped;
        bytes = bytes.split_off(skipped as usize);
        let left = self.claims.left(worker.claim);
        if bytes.is_empty() {
            // What is skipped again is no progress: a source that always ends before the gap would be asked for ever.
            let at = left.start.saturating_sub(worker.skip);
            worker.read_on(pieces, None);
            if at > self.skipped_to {
                (self.skipped_to, self.last_gain) = (at, now);
                // Who waits sees that it isn't in vain.
                self.transfer.advanced();
            }
            return Ok(true);
        }
        if left.end == self.arriving.ingest.size() && bytes.len() as u64 > left.end - left.start {
            self.failed(index, pieces.too_long());
            return Ok(false);
        }
        // Beyond the claim they are another's.
        bytes.truncate(usize::try_from(left.end - left.start).unwrap_or(usize::MAX));
        self.delivered(index, bytes.len() as u64);
        (self.last_gain, self.skipped_to) = (now, 0);
        if let Err(e) = self.write(left.start, &bytes) {
            return Err(Arrived::Disk(e));
        }
        self.gained += bytes.len() as u64;
        self.follow_frontier();
        let rest = self.rest(bytes.len() as u64, now);
        self.was_ahead |= rest.is_some();
        let worker = &mut self.workers[index];
        if self.claims.advance(worker.claim, bytes.len() as u64) {
            self.workers.swap_remove(index);
            if let Pieces::Peer(peer) = pieces
                && peer.to.unwrap_or(self.arriving.ingest.size()) == left.end
            {
                self.partings.keep(peer);
            }
            return Ok(false);
        }
        worker.read_on(pieces, rest);
        Ok(true)
    }

    fn delivered(&mut self, index: usize, bytes: u64) {
        let source = &self.workers[index].source;
        self.transfer.received.add(source.by(), bytes);
        self.follow.received(bytes);
        match source {
            Source::Upstream(upstream) => self.sources.delivered(upstream, bytes),
            Source::Peer(_) => self.sources.take_up(),
        }
    }

    fn write(&self, at: u64, bytes: &Bytes) -> io::Result<()> {
        let parts = std::slice::from_ref(bytes);
        let were_there = self.arriving.ingest.write(at, parts)?;
        self.transfer.advanced();
        self.arriving.ingest.hash(at, if were_there == 0 { parts } else { &[] }).map(|_more| ())
    }
}
