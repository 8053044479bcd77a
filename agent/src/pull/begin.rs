//! The beginning of a transfer: from the first turn to the first answer that is of use.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::timeout;

use super::arrival::WANTED;
use super::ask::first_to_answer;
use super::claims::{NEAR, chunk_after};
use super::direct::Opened;
use super::drive::Driver;
use super::partings::Partings;
use super::received::By;
use super::source::{Answer, AtPeer, PeerFault, Source};
use super::transfer::Unstored;
use super::{Kind, PullError};
use crate::image::{MediaType, Reference};
use crate::peers::{Failed, Follow, PASSED_ON_WHOLE, Peer, Turn};
use crate::store::{CHUNK, Ingest};
use crate::upstream::{ErrorKind, Part, Upstream, UpstreamError};

/// A blob up to this size is read into memory, verified, and stored in one go, in bytes.
const SMALL: u64 = 1 << 20;
/// The same where peers may read along: what is in memory goes on to nobody before all of it is there, and in a chain each
/// would wait for all before it.
const SMALL_AMONG_PEERS: u64 = PASSED_ON_WHOLE;
/// How long a peer may take to send what is read into memory.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// What becomes of a blob whose first source has answered.
pub(super) enum Begun {
    /// It arrives in a file.
    Ingest(Arc<Ingest>, MediaType, Box<Answered>),
    /// It is small, and all of it is in memory, still to be proven.
    Small(Bytes, MediaType, Partings),
    /// The disk takes nothing.
    Unstored(Unstored),
}

/// A source's answer to the request for a part.
pub(super) struct Answered {
    pub(super) source: Source,
    pub(super) answer: Answer,
    /// The first byte that was asked for.
    pub(super) from: u64,
}

impl Driver {
    /// Asks whoever's turn it is until a source answers whose answer makes a beginning: upstreams each once, since a caller
    /// that gets nothing here has other hosts to ask.
    pub(super) async fn begin(
        &mut self,
        follow: &mut Follow,
        mut leftover: Option<Arc<Ingest>>,
    ) -> Result<Begun, PullError> {
        // What the upstreams said, when they were asked in vain.
        let mut said = None;
        // A peer that failed, in a turn that may still stand.
        let mut useless: Option<Peer> = None;
        loop {
            if self.pull.heed(follow, &self.transfer.wanted.digest) {
                self.sources.order();
            }
            match follow.turn() {
                Turn::Upstream { upto } => {
                    if let Some(error) = said {
                        return Err(error);
                    }
                    let begun = tokio::select! {
                        begun = self.begin_upstream(&mut leftover, upto) => begun,
                        () = until(follow, |turn| !matches!(turn, Turn::Upstream { .. })) => {
                            self.sources.order();
                            continue;
                        }
                    };
                    match begun {
                        Ok(begun) => return Ok(begun),
                        Err(error) => {
                            // Another may have it.
                            follow.failed(&error.as_failure());
                            said = Some(error);
                        }
                    }
                }
                // A reader far in doesn't wait for others.
                Turn::Wait if said.is_none() && self.is_far_in() => match self.begin_upstream(&mut leftover, 0).await {
                    Ok(begun) => return Ok(begun),
                    Err(error) => said = Some(error),
                },
                Turn::Peer(peer) if useless.as_ref() != Some(&peer) => {
                    let begun = tokio::select! {
                        begun = self.begin_at(&peer, &mut leftover) => begun,
                        () = until(follow, |turn| !matches!(turn, Turn::Peer(named) if *named == peer)) => continue,
                    };
                    match begun {
                        Ok(begun) => return Ok(begun),
                        // No peer's bytes are this caller's: what its upstreams give it, they give it themselves.
                        Err(PeerFault::Unconfirmed(_)) => *follow = Follow::alone(),
                        Err(fault) => {
                            tracing::debug!(
                                pull = %self.transfer.trace, digest = %self.transfer.wanted.digest,
                                peer = %peer.node(), error = %fault, "a peer is no beginning"
                            );
                            if matches!(follow.turn(), Turn::Peer(named) if named == peer) {
                                follow.failed(&Failed::Peer(peer.node()));
                            }
                            useless = Some(peer);
                        }
                    }
                }
                Turn::Wait | Turn::Peer(_) => follow.changed().await,
            }
        }
    }

    /// Asks the upstreams, each once, for what comes first; for nothing from `upto` on.
    async fn begin_upstream(&mut self, leftover: &mut Option<Arc<Ingest>>, upto: u64) -> Result<Begun, PullError> {
        // The length that a source gave, when it wasn't what had been taken for true.
        let mut disputed = None;
        let mut part = self.first_part(leftover.as_ref(), upto);
        loop {
            let Some((source, opened)) = first_to_answer(&mut self.sources, &self.transfer.wanted, part).await else {
                if disputed.take().is_some() {
                    // Nobody contradicts.
                    self.discard(leftover).await;
                } else if part == Part::WHOLE
                    || !self.sources.said(&ErrorKind::Server(StatusCode::RANGE_NOT_SATISFIABLE))
                {
                    return Err(self.sources.verdict());
                }
                // It may be shorter than who asks for its end believes; then they are to be told.
                part = Part::WHOLE;
                self.sources.begin_round();
                continue;
            };
            let from = part.from;
            if let Some(left) = &*leftover {
                let size = left.size();
                if opened.size.is_none_or(|says| says == size) {
                    return Ok(self.answered(Arc::clone(left), &source, opened, from));
                }
                if disputed == opened.size {
                    self.discard(leftover).await;
                    part = Part::WHOLE;
                } else {
                    disputed = opened.size;
                    let error =
                        source.wrong_answer(format!("says another length than {size} bytes, as was said before"));
                    self.sources.failed(&source, error);
                }
                continue;
            }
            if from > 0 && opened.size.is_none_or(|size| size <= self.in_memory()) {
                // What is small comes whole.
                part = Part::WHOLE;
                continue;
            }
            match self.begin_with(&source, opened, from).await {
                Ok(begun) => return Ok(begun),
                Err(e) => self.sources.failed(&source, e),
            }
        }
    }

    async fn discard(&mut self, leftover: &mut Option<Arc<Ingest>>) {
        if let Some(lying) = leftover.take() {
            self.pull.store.abandon(&lying).await;
            self.suspects.forget();
            self.sources.forget();
        }
    }

    fn answered(&mut self, ingest: Arc<Ingest>, source: &Arc<Upstream>, opened: Opened, from: u64) -> Begun {
        self.suspects.take_from(source);
        let media_type = opened.media_type.clone();
        let (source, answer) = (Source::Upstream(Arc::clone(source)), Answer::Upstream(Box::new(opened)));
        Begun::Ingest(ingest, media_type, Box::new(Answered { source, answer, from }))
    }

    /// What is asked for first: where the reader is that began the transfer, if that is far in; else what comes next,
    /// before `upto`.
    fn first_part(&self, leftover: Option<&Arc<Ingest>>, upto: u64) -> Part {
        let wanted = &self.transfer.wanted;
        if wanted.kind == Kind::Manifest {
            return Part::WHOLE;
        }
        let frontier = leftover.and_then(|ingest| ingest.first_gap(0)).unwrap_or(0);
        let from = match self.transfer.begun_at {
            at if !self.is_far_in() || at <= frontier.saturating_add(NEAR) => frontier,
            at => match leftover {
                Some(ingest) => ingest.gap(at).map_or(frontier, |gap| gap.start),
                None => at / CHUNK * CHUNK,
            },
        };
        if from > frontier {
            return Part { from, to: Some(from.saturating_add(WANTED)) };
        }
        let size = leftover.map(|ingest| ingest.size()).or_else(|| self.pull.sizes.of(&wanted.place, &wanted.digest));
        let to = chunk_after(upto.max(from + 1));
        Part { from, to: (to < size.unwrap_or(u64::MAX)).then_some(to) }
    }

    /// Whether it was begun by a reader that is far from the blob's first byte.
    fn is_far_in(&self) -> bool {
        (NEAR + 1..u64::MAX).contains(&self.transfer.begun_at) && self.transfer.wanted.kind == Kind::Blob
    }

    fn small(&self) -> u64 {
        let is_passed_on = self.pull.peers.is_joined() && self.transfer.wanted.kind == Kind::Blob;
        if is_passed_on { SMALL_AMONG_PEERS } else { SMALL }
    }

    /// Up to this size a blob is read into memory where the disk doesn't take it, in bytes.
    fn in_memory(&self) -> u64 {
        self.pull.options.verify_first.max(SMALL)
    }

    /// Begins a blob whose first source has answered: a small one is read at once, a large one gets its file. What the
    /// disk doesn't take is read all the same: into memory where it is small enough to be verified there, else by each
    /// reader from a source of its own.
    async fn begin_with(
        &mut self,
        source: &Arc<Upstream>,
        mut opened: Opened,
        from: u64,
    ) -> Result<Begun, UpstreamError> {
        if opened.size.is_none() {
            // Without a length there is nothing to reserve; what is small is read to its end to know it.
            opened.read_ahead_among(self.pull.options.verify_first, &mut self.sources).await?;
        }
        if let Some(size) = opened.size.filter(|&size| size > self.small()) {
            match self.pull.store.ingest(&self.transfer.wanted.digest, size, self.origin()).await {
                Ok(ingest) => return Ok(self.answered(ingest, source, opened, from)),
                Err(e) => tracing::debug!(digest = %self.transfer.wanted.digest, reason = %e, "not stored"),
            }
        }
        let (size, media_type) = (opened.size, opened.media_type.clone());
        let is_all = from == 0 && opened.end.is_none_or(|end| size.is_some_and(|size| size <= end));
        if is_all && size.is_some_and(|size| size <= self.in_memory()) {
            let all = self.in_memory();
            opened.read_ahead_among(all, &mut self.sources).await?;
            self.suspects.take_from(source);
            self.transfer.received.name([source.name()]);
            let bytes = opened.into_read();
            let wanted = &self.transfer.wanted;
            if wanted.kind == Kind::Manifest && wanted.digest.like(&bytes) == wanted.digest {
                self.pull.has_given(source, &wanted.place, Reference::Digest(wanted.digest), wanted.digest);
            }
            self.transfer.received.add(By::Upstream, bytes.len() as u64);
            return Ok(Begun::Small(bytes, media_type, Partings::default()));
        }
        // Only what begins with the blob, and goes on to its end, is of use to any reader.
        let opened = Arc::new(Mutex::new(is_all.then_some(opened)));
        Ok(Begun::Unstored(Unstored { size, media_type, opened }))
    }

    /// Begins a blob by what a peer has of it.
    async fn begin_at(&mut self, peer: &Peer, leftover: &mut Option<Arc<Ingest>>) -> Result<Begun, PeerFault> {
        let transfer = Arc::clone(&self.transfer);
        let wanted = &transfer.wanted;
        let mut from = leftover.as_ref().and_then(|ingest| ingest.first_gap(0)).unwrap_or(0);
        let mut at_peer = self.pull.open_at(peer, &transfer, Part::from(from)).await?;
        let mut head = at_peer.stream.head().clone();
        let expected = self.pull.sizes.of(&wanted.place, &wanted.digest);
        if let Some(size) = expected.filter(|size| *size != head.size) {
            return Err(PeerFault::Length { says: head.size, size });
        }
        if let Some(size) = leftover.as_ref().map(|ingest| ingest.size()).filter(|size| *size != head.size) {
            if !head.whole {
                return Err(PeerFault::Length { says: head.size, size });
            }
            // What is proven there is right: it was what is left here that lied.
            self.discard(leftover).await;
            from = 0;
            at_peer = self.pull.open_at(peer, &transfer, Part::WHOLE).await?;
            head = at_peer.stream.head().clone();
        }
        tracing::debug!(pull = %transfer.trace, digest = %wanted.digest, peer = %peer.node(), from, "begins at a peer");
        let media_type = head.media_type.clone();
        let ingest = match leftover {
            Some(ingest) => Some(Arc::clone(ingest)),
            None if head.size <= self.small() => None,
            None => {
                let opened = self.pull.store.ingest(&wanted.digest, head.size, self.origin()).await;
                opened.inspect_err(|e| tracing::debug!(digest = %wanted.digest, reason = %e, "not stored")).ok()
            }
        };
        transfer.received.name(head.sources.iter().map(String::as_str));
        if let Some(ingest) = ingest {
            self.suspects.take_from_peer(peer.node(), &head);
            let (source, answer) = (Source::Peer(peer.clone()), Answer::Peer(at_peer));
            return Ok(Begun::Ingest(ingest, media_type, Box::new(Answered { source, answer, from })));
        }
        if head.size > self.in_memory() {
            let (size, opened) = (Some(head.size), Arc::default());
            return Ok(Begun::Unstored(Unstored { size, media_type, opened }));
        }
        let read = timeout(READ_WITHIN, read_all(&mut at_peer, head.size)).await;
        let bytes = read.map_err(|_| PeerFault::Slow(READ_WITHIN))??;
        self.suspects.take_from_peer(peer.node(), &head);
        transfer.received.add(By::Peer, bytes.len() as u64);
        let mut partings = Partings::default();
        partings.keep(at_peer);
        Ok(Begun::Small(bytes, media_type, partings))
    }
}

/// Reads all of a small blob.
async fn read_all(from: &mut AtPeer, size: u64) -> Result<Bytes, PeerFault> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = from.stream.frame().await? {
        if bytes.len() as u64 + piece.len() as u64 > size {
            return Err(PeerFault::TooLong);
        }
        bytes.extend_from_slice(&piece);
    }
    if (bytes.len() as u64) < size { Err(PeerFault::Cut(bytes.len() as u64)) } else { Ok(bytes.freeze()) }
}

/// Waits until the turn is as `is_so` says.
async fn until(follow: &mut Follow, is_so: impl Fn(&Turn) -> bool) {
    while !is_so(&follow.turn()) {
        follow.changed().await;
    }
}
