//! What comes from a source: its answer, and its bytes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Arrival, Arrived};
use crate::pull::claims::NEAR;
use crate::pull::direct::{Frames, Opened};
use crate::pull::transfer::State;
use crate::pull::worker::{Step, Worker};
use crate::upstream::{Upstream, UpstreamError};

/// How long an upstream that wants no more connections is left in peace.
const CROWDED: Duration = Duration::from_secs(5);

impl Arrival<'_> {
    /// One worker's step. `Ok(false)` when it has ended, and there may be something else to do.
    pub(super) fn step(&mut self, now: Instant, index: usize, step: Step) -> Result<bool, Arrived> {
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
                self.make_it_one_again(&source);
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

    /// A source turned out to know no ranges when a second part was asked for: the connection that sends the whole, if it
    /// is there, goes on to the end; another source may know ranges.
    fn make_it_one_again(&mut self, source: &Arc<Upstream>) {
        let same = |worker: &&Worker| worker.is_reading && Arc::ptr_eq(&worker.source, source);
        match self.workers.iter().find(same) {
            Some(worker) => self.claims.extend(|at| self.arriving.ingest.gap(at), worker.claim),
            None => self.sources.leave(source),
        }
    }

    /// Writes, tells the readers, hashes. May block on the disk: lanes are there for it.
    fn take(&mut self, now: Instant, index: usize, frames: Frames, mut bytes: Bytes) -> Result<bool, Arrived> {
        let worker = &mut self.workers[index];
        worker.received(now, bytes.len() as u64);
        let skipped = worker.skip.min(bytes.len() as u64);
        worker.skip -= skipped;
        bytes = bytes.split_off(skipped as usize);
        if bytes.is_empty() {
            // What is skipped is no progress: a source that always ends before the gap would be asked for ever.
            worker.read_on(frames, false);
            return Ok(true);
        }
        let left = self.claims.left(worker.claim);
        if left.end == self.arriving.ingest.size() && bytes.len() as u64 > left.end - left.start {
            self.failed(index, frames.too_long());
            return Ok(false);
        }
        // Beyond the claim they are another's.
        bytes.truncate(usize::try_from(left.end - left.start).unwrap_or(usize::MAX));
        self.sources.delivered(&self.workers[index].source, bytes.len() as u64);
        self.last_gain = now;
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
}
