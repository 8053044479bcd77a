//! Whose turn it is to bring what comes next.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;

use super::Arrival;
use crate::peers::{Failed, Follow, Peer, Turn};
use crate::pull::claims::ClaimId;
use crate::pull::source::{PeerFault, Source};
use crate::pull::transfer::State;
use crate::pull::worker::Worker;
use crate::store::CHUNK;
use crate::upstream::Part;

/// So many bytes are told to the cluster at once; what is less, at the next tick.
const WORTH_TELLING: u64 = 1 << 20;
/// Readers far ahead that a whole peer serves at the same time.
const AHEAD_AT_PEER: usize = 4;

impl Arrival<'_> {
    /// Dismisses those whose turn is over.
    pub(super) fn obey(&mut self) {
        let turn = self.follow.turn();
        self.heed_broken_sources();
        let mut index = 0;
        while index < self.workers.len() {
            let worker = &self.workers[index];
            let stays = worker.is_out_of_turn
                || match (&turn, &worker.source) {
                    // It would begin anew for each part.
                    (Turn::Upstream { .. }, Source::Upstream(upstream)) if self.sources.is_rangeless(upstream) => true,
                    (Turn::Upstream { upto }, Source::Upstream(_)) => self.claims.end_at(worker.claim, *upto),
                    (Turn::Peer(peer), source) => source.is(&Source::Peer(peer.clone())),
                    // What is under way of the last chunk would be fetched again.
                    (Turn::Wait, Source::Upstream(_)) => worker.is_reading && self.is_in_last_chunk(worker),
                    (Turn::Wait | Turn::Upstream { .. }, _) => false,
                };
            if stays {
                index += 1;
            } else {
                self.dismiss(index);
            }
        }
        if matches!(turn, Turn::Upstream { .. }) && !matches!(self.turn_is, Turn::Upstream { .. }) {
            self.gauge.begin_anew(Instant::now(), self.gained);
        }
        self.turn_is = turn;
    }

    fn is_in_last_chunk(&self, worker: &Worker) -> bool {
        let left = self.claims.left(worker.claim);
        left.end - left.start < CHUNK
    }

    /// Whether the turn may have changed, for a loop that always has something else to do.
    pub(super) fn is_told_otherwise(&mut self) -> bool {
        self.follow.changed().now_or_never().is_some()
    }

    /// What the cluster knows of upstreams that broke this digest for others.
    fn heed_broken_sources(&mut self) {
        if self.pull.heed(self.follow, &self.transfer.wanted.digest) {
            self.sources.order();
        }
        self.verify_as_needed();
    }

    /// Whether anything goes out before everything is verified: others may have said something of who sends it.
    pub(super) fn verify_as_needed(&mut self) {
        let whole = self.suspects.must_be_verified();
        if self.arriving.verify_whole != whole {
            self.arriving.verify_whole = whole;
            self.transfer.become_(State::Arriving(self.arriving.clone()));
        }
    }

    /// Reads from a peer: what comes next by one worker, and what readers far ahead wait for if all of it is there.
    pub(super) fn read_from(&mut self, peer: &Peer) {
        let source = Source::Peer(peer.clone());
        if self.useless.as_ref() == Some(peer) || !self.suspects.admits(&source) {
            return;
        }
        if self.whole_peer == Some(peer.node()) {
            let is_ahead = |worker: &&Worker| worker.is_out_of_turn && worker.source.is(&source);
            let aside = peer.clone().aside();
            while self.workers.iter().filter(is_ahead).count() < AHEAD_AT_PEER
                && let Some(claim) = self.claim_wanted()
            {
                self.employ_peer(&aside, claim, true);
            }
        }
        if self.workers.iter().all(|worker| worker.is_out_of_turn) {
            let ingest = &self.arriving.ingest;
            let next = self.claims.take(|at| ingest.gap(at), self.frontier..u64::MAX, u64::MAX);
            if let Some(claim) = next {
                self.employ_peer(peer, claim, false);
            }
        }
    }

    fn employ_peer(&mut self, peer: &Peer, claim: ClaimId, is_out_of_turn: bool) {
        let left = self.claims.left(claim);
        let to = (left.end < self.arriving.ingest.size()).then_some(left.end);
        let part = Part { from: left.start, to };
        tracing::debug!(
            pull = %self.transfer.trace, digest = %self.transfer.wanted.digest, peer = %peer.node(), from = left.start,
            "reads from a peer"
        );
        let (pull, transfer) = (Arc::clone(self.pull), Arc::clone(self.transfer));
        let worker = Worker::read(pull, transfer, peer.clone(), part, claim);
        self.workers.push(if is_out_of_turn { worker.out_of_turn() } else { worker });
    }

    /// A peer is no use.
    pub(super) fn peer_failed(&mut self, peer: Peer, fault: &PeerFault, was_out_of_turn: bool) {
        let node = peer.node();
        tracing::debug!(
            pull = %self.transfer.trace, digest = %self.transfer.wanted.digest, peer = %node, error = %fault,
            at = self.frontier, "a peer failed"
        );
        self.whole_peer.take_if(|whole| *whole == node);
        if matches!(fault, PeerFault::Unconfirmed(_)) {
            // No peer's bytes are this caller's: what its upstreams give it, they give it themselves.
            *self.follow = Follow::alone();
            return;
        }
        // What reads ahead goes on elsewhere; and a turn that has changed since is not the one that failed.
        if !was_out_of_turn && matches!(self.follow.turn(), Turn::Peer(named) if named == peer) {
            self.useless = Some(peer);
            self.follow.failed(&Failed::Peer(node));
        }
    }

    /// How far readers are served out of turn by upstreams: where no peer has all of it.
    pub(super) fn serves_ahead(&self) -> bool {
        let by_peer = matches!(&self.turn_is, Turn::Peer(peer) if self.whole_peer == Some(peer.node()));
        !by_peer && !self.transfer.wants.is_empty()
    }

    /// Tells the cluster how far it has come, if that is worth it.
    pub(super) fn tell_frontier(&mut self, is_tick: bool) {
        let news = self.frontier.saturating_sub(self.told);
        let ends = matches!(self.turn_is, Turn::Upstream { upto } if self.frontier >= upto && self.told < upto);
        let is_all = self.frontier == self.arriving.ingest.size();
        if news >= WORTH_TELLING || (news > 0 && (is_tick || ends || is_all)) {
            self.told = self.frontier;
            self.follow.arrived(self.frontier);
        }
    }
}
