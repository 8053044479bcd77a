//! What a peer reads: a head, then bytes while they come, with a beat every 200 ms, and at the end why it ends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use larder_proto::peers::{ReadReply, read_reply};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use super::pieces::Pieces;
use super::source::{Reading, Source};
use crate::cluster::chain::Parting;
use crate::image::{Digest, NodeId};
use crate::peers::frames::{before, framed};
use crate::peers::{Child, Due, Parted, Peers, ReadAsk, Trace, label, messages};
use crate::pull::{Ended, NotShared};

/// A peer that hears nothing for three of these leaves.
const BEAT: Duration = Duration::from_millis(200);
/// How long a transfer here may go without a first answer of its source until a peer that waits for it is sent away.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// From so many bytes on, what a peer got is a line in the log as it is by default: a pull has many small blobs.
const WORTH_A_LINE: u64 = 1 << 20;
/// Messages that wait for the connection. Beyond, nothing more is read.
const WAITING: usize = 2;

/// Answers one request to read.
pub(super) fn read<S: Source>(
    peers: Peers,
    source: S,
    reader: NodeId,
    ask: ReadAsk,
    stop: CancellationToken,
) -> Response<Body> {
    let (messages, waiting) = mpsc::channel(WAITING);
    let sender = Sender { peers, reader, ask, stop, messages, beats: beats() };
    let body = Body::new(Replies { waiting, sender: Some(Box::pin(sender.send(source))), ended: false });
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn beats() -> Interval {
    let mut beats = interval_at(Instant::now() + BEAT, BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

/// The messages of one answer, made while they are read: no task, and nothing ahead of who reads.
struct Replies {
    waiting: mpsc::Receiver<Bytes>,
    sender: Option<BoxFuture<'static, ()>>,
    ended: bool,
}

impl http_body::Body for Replies {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            // Not by polling, which pauses now and then for others' sake while something is there: whatever comes comes from
            // the sender, which is polled right here.
            match self.waiting.try_recv() {
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Err(TryRecvError::Empty) => {}
                // It is gone, and all that it said has been taken.
                Err(TryRecvError::Disconnected) if self.ended => return Poll::Ready(None),
                Err(TryRecvError::Disconnected) => {
                    self.ended = true;
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
            let Some(sender) = &mut self.sender else { return Poll::Pending };
            match sender.as_mut().poll(context) {
                Poll::Ready(()) => self.sender = None,
                Poll::Pending if self.waiting.is_empty() => return Poll::Pending,
                // It has said something on the way.
                Poll::Pending => {}
            }
        }
    }
}

/// Whoever reads has left.
struct Gone;

/// One answer under way.
struct Sender {
    peers: Peers,
    reader: NodeId,
    ask: ReadAsk,
    stop: CancellationToken,
    messages: mpsc::Sender<Bytes>,
    beats: Interval,
}

impl Sender {
    async fn send<S: Source>(mut self, source: S) {
        let why = match self.begin(&source).await {
            Ok(Ok((reading, child))) => {
                let mut given = Given::new(self.reader, &self.ask);
                let why = self.pass_on(reading, child, &mut given).await;
                given.why = why.as_ref().map_or("left", label);
                why
            }
            Ok(Err(why)) => {
                self.peers.metrics().refused(label(&why));
                tracing::debug!(
                    pull = %self.ask.trace, digest = %self.ask.key.digest, reader = %self.reader, why = label(&why),
                    "a peer gets nothing from here"
                );
                Ok(why)
            }
            Err(Gone) => return,
        };
        if let Ok(why) = why {
            // Whether anybody still reads it is all the same now.
            let _ = self.say(read_reply::Part::Parting(messages::parting_of(&why))).await;
        }
    }

    /// Finds it, and a place for the reader. Beats say meanwhile that this node is alive.
    async fn begin<S: Source>(&mut self, source: &S) -> Result<Result<(S::Reading, Child), Parting>, Gone> {
        let ask = self.ask.clone();
        let begins_by = Instant::now() + BEGINS_WITHIN;
        let reading = loop {
            let key = &ask.key;
            let share = source.share(&key.digest, &key.registry, key.access, ask.from, ask.end);
            tokio::pin!(share);
            let shared = loop {
                tokio::select! {
                    shared = &mut share => break shared,
                    _ = self.beats.tick() => match self.peers.says_while_it_begins(&ask) {
                        Ok(beat) => self.say(read_reply::Part::Beat(beat)).await?,
                        Err(parting) => return Ok(Err(parting)),
                    },
                    () = self.stop.cancelled() => return Ok(Err(Parting::Stopping)),
                }
            };
            match shared {
                Ok(reading) => break reading,
                Err(NotShared::NotYet) if Instant::now() < begins_by => {}
                Err(NotShared::NotYet | NotShared::Absent) => return Ok(Err(Parting::Absent)),
                // It may be here: owners are to go on knowing that it is.
                Err(NotShared::Unanswered) => return Ok(Err(Parting::Failed)),
            }
        };
        let admitted = self.peers.admit(self.reader, &ask, reading.head().whole);
        Ok(admitted.map(|child| (reading, child)))
    }

    async fn pass_on(&mut self, reading: impl Reading, mut child: Child, given: &mut Given) -> Result<Parting, Gone> {
        let head = reading.head();
        let end = self.ask.end.map_or(head.size, |end| end.min(head.size));
        self.say(read_reply::Part::Head(messages::head_of(head))).await?;
        let from = self.ask.from.min(end);
        let mut out = Pieces::new(reading, from, self.reader, self.peers.upload().cloned());
        loop {
            match child.due(out.at()) {
                Due::More => {}
                Due::Rest => out.reading_mut().hurry(),
                Due::Parting(why) => return Ok(why),
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(Parting::Stopping),
                () = child.changed() => {}
                _ = self.beats.tick() => self.say(read_reply::Part::Beat(child.beat(out.reading().frontier()))).await?,
                piece = out.next() => match piece {
                    Ok(Some(bytes)) => {
                        child.sent(bytes.len() as u64);
                        given.bytes += bytes.len() as u64;
                        self.put(before(&bytes)).await?;
                        self.put(bytes).await?;
                    }
                    Ok(None) => break,
                    Err(Ended::Broken(sources)) => return Ok(Parting::Broken(sources)),
                    Err(Ended::Short | Ended::Unreadable) => return Ok(Parting::Failed),
                },
            }
        }
        let frontier = out.reading().frontier();
        let parted = out.reading_mut().parted();
        tokio::pin!(parted);
        loop {
            tokio::select! {
                parted = &mut parted => return Ok(match parted {
                    Parted::Held => Parting::Held,
                    Parted::Broken(sources) => Parting::Broken(sources),
                    Parted::Unknown => Parting::Sent,
                }),
                _ = self.beats.tick() => self.say(read_reply::Part::Beat(child.beat(frontier))).await?,
            }
        }
    }

    async fn say(&mut self, part: read_reply::Part) -> Result<(), Gone> {
        self.put(framed(&ReadReply { part: Some(part) })).await
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.messages.send(bytes).await.map_err(|_| Gone)
    }
}

/// What a peer got, which is logged when its stream ends, however that is: dropped, the connection has.
struct Given {
    reader: NodeId,
    pull: Trace,
    digest: Digest,
    from: u64,
    bytes: u64,
    /// A part of many.
    aside: bool,
    why: &'static str,
}

impl Given {
    fn new(reader: NodeId, ask: &ReadAsk) -> Self {
        let (pull, digest) = (ask.trace.clone(), ask.key.digest);
        Self { reader, pull, digest, from: ask.from, bytes: 0, aside: ask.aside, why: "left" }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let Self { reader, pull, digest, from, bytes, aside, why } = self;
        if *bytes >= WORTH_A_LINE && !*aside {
            tracing::info!(%pull, %digest, %reader, from = *from, bytes = *bytes, why, "gave a peer what it read");
        } else {
            tracing::debug!(%pull, %digest, %reader, from = *from, bytes = *bytes, why, "gave a peer what it read");
        }
    }
}
