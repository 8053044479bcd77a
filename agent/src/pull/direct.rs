//! Reading straight from an upstream, past the disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{Inner, Kind, Wanted};
use crate::image::{Access, Hasher, MediaType, Reference};
use crate::store::CHUNK;
use crate::upstream::{Answer, Body, Part, Upstream, UpstreamError};

/// For what is read whole before anyone gets any of it: a few MiB.
const READ_AHEAD_DEADLINE: Duration = Duration::from_secs(20);

/// An upstream's answer, of which nothing or a first part has been read.
pub(super) struct Opened {
    /// The whole blob's length in bytes, where the upstream said.
    pub(super) size: Option<u64>,
    /// Where in the blob the bytes begin: less than what was asked for where the upstream ignored the range.
    pub(super) offset: u64,
    pub(super) media_type: MediaType,
    /// Whether anybody would have got it.
    pub(super) access: Access,
    upstream: Arc<Upstream>,
    ahead: BytesMut,
    body: Body,
}

impl Opened {
    pub(super) async fn open(upstream: &Arc<Upstream>, wanted: &Wanted, part: Part) -> Result<Self, UpstreamError> {
        let Wanted { place, grant, digest, kind } = wanted;
        let answer = match kind {
            Kind::Manifest => upstream.manifest(grant, &place.repository, &Reference::Digest(*digest)).await?,
            Kind::Blob => upstream.blob(grant, &place.repository, digest, part).await?,
        };
        Ok(Self::from(upstream, answer))
    }

    pub(super) fn from(upstream: &Arc<Upstream>, answer: Answer) -> Self {
        let Answer { size, offset, media_type, access, body, .. } = answer;
        let media_type = media_type.unwrap_or_else(MediaType::octet_stream);
        Self { size, offset, media_type, access, upstream: Arc::clone(upstream), ahead: BytesMut::new(), body }
    }

    /// Reads until the body ends, which makes its length known, or until more than `limit` bytes are there.
    ///
    /// Within [`READ_AHEAD_DEADLINE`]: a source that drips is no answer.
    pub(super) async fn read_ahead(&mut self, limit: u64) -> Result<(), UpstreamError> {
        let upstream = Arc::clone(&self.upstream);
        let late = |_| upstream.wrong_answer(format!("takes longer than {READ_AHEAD_DEADLINE:?}"));
        tokio::time::timeout(READ_AHEAD_DEADLINE, self.read_to(limit)).await.map_err(late)?
    }

    async fn read_to(&mut self, limit: u64) -> Result<(), UpstreamError> {
        while self.ahead.len() as u64 <= limit {
            match self.body.frame().await? {
                Some(frame) => self.ahead.extend_from_slice(&frame),
                None => {
                    self.size = Some(self.offset + self.ahead.len() as u64);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What has been read ahead.
    pub(super) fn read(&self) -> &[u8] {
        &self.ahead
    }

    pub(super) fn into_read(self) -> Bytes {
        self.ahead.freeze()
    }

    pub(super) fn into_frames(self) -> Frames {
        Frames { ahead: self.ahead.freeze(), body: self.body, upstream: self.upstream }
    }
}

/// The bytes of an answer, in the pieces in which they come.
pub(super) struct Frames {
    ahead: Bytes,
    body: Body,
    upstream: Arc<Upstream>,
}

impl Frames {
    /// The next piece; `None` at the end that the upstream announced.
    pub(super) async fn frame(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        if self.ahead.is_empty() { self.body.frame().await } else { Ok(Some(std::mem::take(&mut self.ahead))) }
    }

    /// The error of a body that ended in good order, and too early.
    pub(super) fn cut(&self, at: u64) -> UpstreamError {
        self.upstream.wrong_answer(format!("ended its answer after {at} bytes, short of the blob"))
    }

    /// The error of a body that goes on past the blob.
    pub(super) fn too_long(&self) -> UpstreamError {
        self.upstream.wrong_answer("sends more bytes than the blob has")
    }
}

/// A blob read from upstream by one reader alone, because the disk takes nothing.
///
/// With a hash that has run from the first byte on, the last [`CHUNK`], or all of a small blob, is held back until the
/// digest holds.
pub(super) struct Direct {
    pull: Arc<Inner>,
    wanted: Wanted,
    /// The next byte to come from upstream.
    at: u64,
    /// Bytes before this one are not wanted.
    start: u64,
    /// Where reading ends; `None` for the end of a blob of unknown length.
    end: Option<u64>,
    /// Absent for a part: then nothing can be proven.
    hasher: Option<Hasher>,
    held: VecDeque<Bytes>,
    held_bytes: u64,
    /// How much is held back at the least, in bytes.
    hold: u64,
    frames: Option<(Frames, Arc<Upstream>)>,
    /// The sources whose bytes were taken.
    from: Vec<Arc<Upstream>>,
    /// Bytes of the current answer that lie before `at`.
    skip: u64,
    /// How many upstreams were asked since `at` stood at `tried_at`: each once for every byte that comes.
    tried: usize,
    tried_at: u64,
}

/// Why a direct reading ended short.
pub(super) enum DirectEnd {
    /// No source is left.
    Cut,
    /// All the bytes came, and they are wrong.
    WrongBytes,
}

impl Direct {
    /// Reads `[start, end)` of a blob. `hasher` has taken all bytes before `start`; it is given only when the reading
    /// goes to the end of the blob, since only then does its digest prove anything.
    pub(super) fn new(
        pull: Arc<Inner>,
        wanted: Wanted,
        (start, end): (u64, Option<u64>),
        hasher: Option<Hasher>,
    ) -> Self {
        let verify_first = pull.options.verify_first;
        let hold = if end.is_some_and(|end| end <= verify_first) { verify_first } else { CHUNK };
        Self {
            pull,
            wanted,
            at: start,
            start,
            end,
            hasher,
            held: VecDeque::new(),
            held_bytes: 0,
            hold,
            frames: None,
            skip: 0,
            tried: 0,
            tried_at: start,
            from: Vec::new(),
        }
    }

    /// Takes over an answer that was opened at the blob's first byte.
    pub(super) fn take_over(&mut self, opened: Opened) {
        self.at = opened.offset;
        let upstream = Arc::clone(&opened.upstream);
        self.from.push(Arc::clone(&upstream));
        self.frames = Some((opened.into_frames(), upstream));
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, DirectEnd> {
        loop {
            if let Some(bytes) = self.release() {
                return Ok(Some(bytes));
            }
            if self.end.is_some_and(|end| self.at >= end) && self.frames.is_none() {
                return Ok(None);
            }
            match self.frame().await? {
                Some(frame) => self.take(frame),
                None => {
                    self.frames = None;
                    self.end = Some(self.at);
                    if let Some(hasher) = self.hasher.take()
                        && hasher.finish() != self.wanted.digest
                    {
                        self.held.clear();
                        for upstream in self.from.drain(..) {
                            self.pull.blame.broke(upstream.name(), self.wanted.digest);
                        }
                        return Err(DirectEnd::WrongBytes);
                    }
                    if self.held.is_empty() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// What may go out: everything once the digest holds or can't be proven, else all but the last chunk.
    fn release(&mut self) -> Option<Bytes> {
        let hold = if self.hasher.is_some() { self.hold } else { 0 };
        let first = self.held.front()?.len() as u64;
        if self.held_bytes < hold + first {
            return None;
        }
        self.held_bytes -= first;
        self.held.pop_front()
    }

    fn take(&mut self, mut frame: Bytes) {
        let skipped = self.skip.min(frame.len() as u64);
        self.skip -= skipped;
        frame = frame.slice(skipped as usize..);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&frame);
        }
        let before = self.start.saturating_sub(self.at).min(frame.len() as u64);
        self.at += frame.len() as u64;
        let mut wanted = frame.slice(before as usize..);
        if self.hasher.is_none()
            && let Some(end) = self.end
            && self.at > end
        {
            // A part that ends before the blob does.
            wanted.truncate(wanted.len() - (self.at - end).min(wanted.len() as u64) as usize);
            self.at = end;
            self.frames = None;
        }
        self.held_bytes += wanted.len() as u64;
        if !wanted.is_empty() {
            self.held.push_back(wanted);
        }
    }

    /// The next piece from whichever upstream gives it, each asked once for it. `None` at the end of the blob.
    async fn frame(&mut self) -> Result<Option<Bytes>, DirectEnd> {
        loop {
            if let Some((frames, upstream)) = &mut self.frames {
                match frames.frame().await {
                    Ok(Some(frame)) => return Ok(Some(frame)),
                    Ok(None) => return Ok(None),
                    Err(e) => {
                        tracing::debug!(digest = %self.wanted.digest, upstream = upstream.name(), error = %e, "a source failed");
                    }
                }
                self.frames = None;
            }
            if self.at > self.tried_at {
                (self.tried, self.tried_at) = (0, self.at);
            }
            let chain = self.pull.chain(&self.wanted.place, &self.wanted.digest);
            let Some(upstream) = chain.get(self.tried).cloned() else { return Err(DirectEnd::Cut) };
            self.tried += 1;
            match self.pull.open(&upstream, &self.wanted, Part::from(self.at)).await {
                Ok(opened) if self.end.is_some_and(|end| opened.size.is_some_and(|size| size < end)) => {
                    tracing::debug!(digest = %self.wanted.digest, upstream = upstream.name(), "a source has another length");
                }
                Ok(opened) => {
                    self.skip = self.at.saturating_sub(opened.offset);
                    self.from.push(Arc::clone(&upstream));
                    self.frames = Some((opened.into_frames(), upstream));
                }
                Err(e) => {
                    tracing::debug!(digest = %self.wanted.digest, upstream = upstream.name(), error = %e, "a source failed");
                }
            }
        }
    }
}
