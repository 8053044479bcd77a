//! Reading straight from an upstream, past the disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::ask::first_to_answer;
use super::sources::{CRAWL, Sources, WATCH};
use super::worker::TURN;
use super::{Inner, Kind, Wanted};
use crate::image::{Access, Hasher, MediaType, Reference};
use crate::store::CHUNK;
use crate::upstream::{Answer, Body, Part, Upstream, UpstreamError};

/// A source that is silent for so long is left, when another one may do better. Without another, `stall_timeout` holds.
pub(super) const SILENT: Duration = Duration::from_secs(2);
/// For what is read whole before anyone gets any of it: a few MiB.
const READ_AHEAD_DEADLINE: Duration = Duration::from_secs(20);

/// An upstream's answer, of which nothing or a first part has been read.
pub(super) struct Opened {
    /// The whole blob's length in bytes, where the upstream or a manifest said.
    pub(super) size: Option<u64>,
    /// Where in the blob the bytes begin: less than what was asked for where the upstream ignored the range.
    pub(super) offset: u64,
    /// Where the part that was asked for ends; `None` for the end of the blob.
    pub(super) end: Option<u64>,
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
        Ok(Self { end: part.to, ..Self::from(upstream, answer) })
    }

    pub(super) fn from(upstream: &Arc<Upstream>, answer: Answer) -> Self {
        let Answer { size, offset, media_type, access, body, .. } = answer;
        let media_type = media_type.unwrap_or_else(MediaType::octet_stream);
        Self {
            size,
            offset,
            end: None,
            media_type,
            access,
            upstream: Arc::clone(upstream),
            ahead: BytesMut::new(),
            body,
        }
    }

    /// Reads until the body ends, which makes its length known, or until more than `limit` bytes are there.
    ///
    /// Within [`READ_AHEAD_DEADLINE`]: a source that drips is no answer.
    pub(super) async fn read_ahead(&mut self, limit: u64) -> Result<(), UpstreamError> {
        self.read_in_time(limit, None).await
    }

    /// The same. A source that falls silent is left sooner, where another one may do better.
    pub(super) async fn read_ahead_among(&mut self, limit: u64, sources: &mut Sources) -> Result<(), UpstreamError> {
        self.read_in_time(limit, Some(sources)).await
    }

    async fn read_in_time(&mut self, limit: u64, sources: Option<&mut Sources>) -> Result<(), UpstreamError> {
        let upstream = Arc::clone(&self.upstream);
        let late = |_| upstream.wrong_answer(format!("takes longer than {READ_AHEAD_DEADLINE:?}"));
        tokio::time::timeout(READ_AHEAD_DEADLINE, self.read_to(limit, sources)).await.map_err(late)?
    }

    async fn read_to(&mut self, limit: u64, mut sources: Option<&mut Sources>) -> Result<(), UpstreamError> {
        let began = Instant::now();
        while self.ahead.len() as u64 <= limit {
            let frame = match &mut sources {
                Some(sources) => patient(sources, &self.upstream, || self.body.frame()).await?,
                None => self.body.frame().await?,
            };
            match frame {
                Some(frame) => {
                    self.ahead.extend_from_slice(&frame);
                    let (elapsed, bytes) = (began.elapsed(), self.ahead.len() as u64);
                    let rate = (bytes as f64 / elapsed.as_secs_f64()) as u64;
                    if elapsed >= WATCH
                        && rate < CRAWL
                        && sources.as_mut().is_some_and(|sources| sources.prefer_faster(&self.upstream, rate))
                    {
                        self.upstream.crawled(rate);
                        return Err(self.upstream.wrong_answer(format!("crawls, at {rate} bytes a second")));
                    }
                }
                None => {
                    self.size = Some(self.offset + self.ahead.len() as u64);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whose it is.
    pub(super) const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
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

    /// Whose they are.
    pub(super) const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
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
    /// When the current answer is to give way to others who wait, and from which byte on; `None` where the next one would
    /// begin at the blob's first byte.
    turn: Option<(Instant, u64)>,
    sources: Sources,
    last_gain: Instant,
    /// How long the current answer was waited for since it was last judged, and how many bytes came. A caller that reads
    /// slowly is no fault of its.
    watched: (Duration, u64),
}

/// Why a direct reading ended short.
pub(super) enum DirectEnd {
    /// No source is left.
    Cut,
    /// All the bytes came, and they are wrong.
    WrongBytes,
}

impl Direct {
    /// Reads `[start, end)` of a blob. `hashed` is a hash over all bytes before the second, from which on the blob is read
    /// then, at or before `start`; it is given only when the reading goes to the end of the blob, since only then does its
    /// digest prove anything.
    pub(super) fn new(
        pull: Arc<Inner>,
        wanted: Wanted,
        (start, end): (u64, Option<u64>),
        hashed: Option<(Hasher, u64)>,
    ) -> Self {
        let (hasher, at) = hashed.map_or((None, start), |(hasher, at)| (Some(hasher), at));
        let sources = Sources::new(Arc::clone(&pull), wanted.clone());
        let verify_first = pull.options.verify_first;
        let hold = if end.is_some_and(|end| end <= verify_first) { verify_first } else { CHUNK };
        Self {
            pull,
            wanted,
            at,
            start,
            end,
            hasher,
            held: VecDeque::new(),
            held_bytes: 0,
            hold,
            frames: None,
            skip: 0,
            turn: None,
            from: Vec::new(),
            sources,
            last_gain: Instant::now(),
            watched: (Duration::ZERO, 0),
        }
    }

    /// Takes over an answer that was opened already, where it has what comes next, and goes far enough.
    pub(super) fn take_over(&mut self, opened: Opened) {
        let is_near = opened.offset <= self.at && self.at - opened.offset <= CHUNK;
        if !is_near || opened.end.is_some_and(|to| self.end.is_none_or(|end| end > to)) {
            return;
        }
        let upstream = Arc::clone(&opened.upstream);
        self.sources.settle(&upstream);
        self.read_from(upstream, opened);
    }

    fn read_from(&mut self, upstream: Arc<Upstream>, opened: Opened) {
        self.skip = self.at.saturating_sub(opened.offset);
        self.turn = (self.skip == 0).then(|| (Instant::now() + TURN, self.at));
        if !self.from.iter().any(|known| Arc::ptr_eq(known, &upstream)) {
            self.from.push(Arc::clone(&upstream));
        }
        self.frames = Some((opened.into_frames(), upstream));
        self.watched = (Duration::ZERO, 0);
    }

    /// The rate of the current answer, in bytes a second, each time that it has been watched long enough.
    fn rate(&mut self) -> Option<u64> {
        let (waited, bytes) = self.watched;
        (waited >= WATCH).then(|| {
            self.watched = (Duration::ZERO, 0);
            (bytes as f64 / waited.as_secs_f64()) as u64
        })
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, DirectEnd> {
        loop {
            if let Some(bytes) = self.release() {
                return Ok(Some(bytes));
            }
            let is_over = self.frames.is_none() && self.end.is_some_and(|end| self.at >= end);
            let frame = if is_over { None } else { self.frame().await? };
            match frame {
                Some(frame) => self.take(frame),
                None => {
                    self.frames = None;
                    self.end = Some(self.at);
                    if let Some(hasher) = self.hasher.take()
                        && hasher.finish() != self.wanted.digest
                    {
                        self.held.clear();
                        self.pull.blame.broken_by(&self.from, self.wanted.digest);
                        if let [one] = self.from.as_slice() {
                            self.pull.warn_others(one.name());
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
        // A part ends before the blob does; and a source that didn't say where the blob ends may send more than it has.
        let left = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.at));
        if frame.len() as u64 > left {
            frame.truncate(left as usize);
            self.frames = None;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&frame);
        }
        let before = self.start.saturating_sub(self.at).min(frame.len() as u64);
        self.at += frame.len() as u64;
        let wanted = frame.slice(before as usize..);
        self.held_bytes += wanted.len() as u64;
        if !wanted.is_empty() {
            self.held.push_back(wanted);
        }
    }

    /// Whether the current answer has brought something, for as long as it may while others wait for its connection.
    fn has_had_its_turn(&self) -> bool {
        let is_waited_for = |(_, upstream): &(Frames, Arc<Upstream>)| upstream.is_waited_for();
        self.turn.is_some_and(|(over, from)| self.at > from && Instant::now() >= over)
            && self.end.is_some_and(|end| self.at < end)
            && self.frames.as_ref().is_some_and(is_waited_for)
    }

    /// The next piece from whichever upstream gives it. `None` at the end of the blob.
    async fn frame(&mut self) -> Result<Option<Bytes>, DirectEnd> {
        loop {
            let crawl = self.rate().filter(|rate| *rate < CRAWL);
            if self.has_had_its_turn() {
                self.frames = None;
            }
            if let Some((frames, upstream)) = &mut self.frames {
                if let Some(rate) = crawl
                    && self.sources.prefer_faster(upstream, rate)
                {
                    self.sources.crawls(upstream, rate);
                    self.frames = None;
                    continue;
                }
                let asked = Instant::now();
                match patient(&mut self.sources, upstream, || frames.frame()).await {
                    Ok(Some(frame)) => {
                        self.watched.0 += asked.elapsed();
                        self.watched.1 += frame.len() as u64;
                        let fresh = (frame.len() as u64).saturating_sub(self.skip);
                        if fresh > 0 {
                            self.sources.delivered(upstream, fresh);
                            self.last_gain = Instant::now();
                        }
                        return Ok(Some(frame));
                    }
                    Ok(None) if self.end.is_none_or(|end| self.at >= end) => return Ok(None),
                    Ok(None) => self.sources.failed(upstream, frames.cut(self.at)),
                    Err(e) => self.sources.failed(upstream, e),
                }
                self.frames = None;
            }
            if self.sources.next().is_none() {
                let pause = self.sources.pause();
                if self.last_gain.elapsed() + pause > self.pull.options.resume_within {
                    return Err(DirectEnd::Cut);
                }
                tokio::time::sleep(pause).await;
                self.sources.begin_round();
                continue;
            }
            let answer = first_to_answer(&mut self.sources, &self.wanted, Part::from(self.at)).await;
            let Some((upstream, opened)) = answer else { continue };
            if self.end.is_some_and(|end| opened.size.is_some_and(|size| size < end)) {
                self.sources.failed(&upstream, upstream.wrong_answer("says that the blob is shorter"));
            } else {
                self.read_from(upstream, opened);
            }
        }
    }
}

/// A source's next piece; an error as soon as it is silent for long while another is likely to do better.
async fn patient<F>(
    sources: &mut Sources,
    upstream: &Arc<Upstream>,
    frame: impl FnOnce() -> F,
) -> Result<Option<Bytes>, UpstreamError>
where
    F: Future<Output = Result<Option<Bytes>, UpstreamError>>,
{
    let frame = frame();
    tokio::pin!(frame);
    match tokio::time::timeout(SILENT, &mut frame).await {
        Ok(frame) => frame,
        Err(_) if sources.prefer_faster(upstream, 0) => Err(silent(upstream)),
        Err(_) => frame.await,
    }
}

/// The error of a source that was left because another may do better; it is held against it.
pub(super) fn silent(upstream: &Upstream) -> UpstreamError {
    upstream.fell_silent(SILENT)
}
