use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_proto::peers::{ReadReply, read_reply};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::chain::Chain;
use super::frames::Part;
use super::incoming::Incoming;
use super::messages::{self, ReadAsk};
use super::metrics::{Direction, Streaming};
use super::{PeerError, label};
use crate::cluster::chain::Parting;
use crate::cluster::follow::Opening;
use crate::image::{Access, MediaType, NodeId, Registry};
use crate::wire::Purpose;

/// From the last byte to what the peer says of the whole: it has to hash what it just got, too.
const PARTING: Duration = Duration::from_secs(2);
/// By so much longer has a rest to be for it to be told of again.
const WORTH_TELLING: Duration = Duration::from_millis(50);

/// Another node that a blob can be read from, as one turn names it. Equal when the same turn does.
#[derive(Clone)]
pub struct Peer {
    node: NodeId,
    of: Of,
}

#[derive(Clone)]
enum Of {
    Chain(Place),
    #[cfg(test)]
    Script(super::script::Peering),
}

/// Which turn of which reading.
#[derive(Clone)]
struct Place {
    chain: Arc<Chain>,
    reading: u64,
    opening: Opening,
    /// What becomes of its streams says nothing of the turn.
    is_aside: bool,
}

impl Peer {
    pub(super) const fn new(chain: Arc<Chain>, reading: u64, opening: Opening) -> Self {
        Self { node: opening.node, of: Of::Chain(Place { chain, reading, opening, is_aside: false }) }
    }

    #[cfg(test)]
    pub(super) const fn with_script(node: NodeId, script: super::script::Peering) -> Self {
        Self { node, of: Of::Script(script) }
    }

    #[cfg(test)]
    pub(super) const fn script(&self) -> Option<&super::script::Peering> {
        match &self.of {
            Of::Script(script) => Some(script),
            Of::Chain(_) => None,
        }
    }

    /// Which node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The same for what is read beside what comes next: its failures are no failures of the turn.
    #[must_use]
    pub fn aside(mut self) -> Self {
        match &mut self.of {
            Of::Chain(place) => place.is_aside = true,
            #[cfg(test)]
            Of::Script(_) => {}
        }
        self
    }

    /// Opens the blob, from a byte on and to another (`None`: its end). A peer whose own transfer has only begun lets wait
    /// for the head, and says meanwhile that it is alive: who waits keeps an eye on the turn.
    ///
    /// # Errors
    /// When the peer can't be reached, or doesn't give it.
    pub async fn open(&self, from: u64, to: Option<u64>) -> Result<PeerStream, PeerError> {
        match &self.of {
            Of::Chain(place) => {
                let opened = place.open(from, to).await;
                let reading = opened.inspect_err(|error| place.failed(error))?;
                Ok(PeerStream { head: reading.0, bytes: Reading::Peer(Box::new(reading.1)) })
            }
            #[cfg(test)]
            Of::Script(script) => script.open(from, to).await,
        }
    }
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        match (&self.of, &other.of) {
            (Of::Chain(one), Of::Chain(other)) => {
                one.reading == other.reading && one.opening.number == other.opening.number
            }
            #[cfg(test)]
            _ => self.node == other.node,
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({})", self.node)
    }
}

impl Place {
    async fn open(&self, from: u64, to: Option<u64>) -> Result<(Head, FromPeer), PeerError> {
        let (node, inner) = (self.opening.node, self.chain.inner());
        let ask = ReadAsk {
            key: self.chain.key().clone(),
            from,
            end: to,
            ticket: self.opening.ticket,
            insists: self.opening.insists,
            instead_of: self.opening.instead_of,
            aside: self.is_aside,
            trace: self.chain.trace(self.reading),
        };
        let rate = inner.download.as_ref().and_then(|limiter| limiter.rate());
        let channel = inner.channel(node, rate.map_or(Purpose::Bulk, Purpose::Limited));
        let channel = channel.map_err(|e| PeerError::Unreachable { node, why: e.to_string() })?;
        let pulse = (inner.pulses.of(node), inner.started);
        let mut incoming = Incoming::open(node, inner.node, channel, &messages::read_request(&ask), pulse).await?;
        let head = loop {
            match incoming.part().await? {
                Some(Part::Other(ReadReply { part: Some(read_reply::Part::Head(head)) })) => {
                    break messages::head(head).map_err(|e| PeerError::Senseless { node, what: e.0 })?;
                }
                Some(Part::Other(ReadReply { part: Some(read_reply::Part::Beat(beat)) })) => {
                    self.chain.beat(self.reading, self.opening.number, beat);
                }
                Some(Part::Other(ReadReply { part: Some(read_reply::Part::Parting(parting)) })) => {
                    let parting = messages::parting(parting).map_err(|e| PeerError::Senseless { node, what: e.0 })?;
                    return Err(PeerError::Parted { node, parting });
                }
                // Of a newer version.
                Some(Part::Other(_)) => {}
                Some(Part::Data(_)) => return Err(PeerError::Senseless { node, what: "bytes before the head" }),
                None => return Err(PeerError::Unreachable { node, why: "it ended at once".to_owned() }),
            }
        };
        if !self.is_aside {
            self.chain.opened(self.reading, self.opening.number);
        }
        let end = to.unwrap_or(head.size).min(head.size);
        let zone = inner.ring().member(node).map(|member| member.zone.clone()).unwrap_or_default();
        let stream = FromPeer {
            place: self.clone(),
            incoming,
            ready: VecDeque::new(),
            due: None,
            known_rest: None,
            at: from,
            end,
            parted: None,
            counted: inner.metrics.streaming(Direction::In, inner.nearness(&zone)),
        };
        Ok((head, stream))
    }

    fn failed(&self, error: &PeerError) {
        if !self.is_aside {
            self.chain.failed(self.reading, self.opening.number, self.opening.node, error);
        }
    }
}

/// What a peer says before the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The whole blob's, in bytes.
    pub size: u64,
    /// As its registry gave it.
    pub media_type: MediaType,
    /// Which registry gave it.
    pub registry: Registry,
    /// And to whom.
    pub access: Access,
    /// All of it is there and verified.
    pub whole: bool,
    /// The upstreams that it came from, as far as it isn't whole.
    pub sources: Vec<String>,
}

/// A blob on its way from a peer.
#[derive(Debug)]
pub struct PeerStream {
    head: Head,
    bytes: Reading,
}

#[derive(Debug)]
enum Reading {
    Peer(Box<FromPeer>),
    #[cfg(test)]
    Script(super::script::Stream),
}

impl PeerStream {
    #[cfg(test)]
    pub(super) const fn with_script(head: Head, script: super::script::Stream) -> Self {
        Self { head, bytes: Reading::Script(script) }
    }

    /// What the peer says of it.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The next bytes, checked against the peer's checksum; `None` when all that was asked for came. Cancelling it loses
    /// nothing.
    ///
    /// # Errors
    /// When the peer ends, errs, falls silent, or parts from us.
    pub async fn frame(&mut self) -> Result<Option<Bytes>, PeerError> {
        match &mut self.bytes {
            Reading::Peer(stream) => {
                let next = stream.next().await;
                next.inspect_err(|error| stream.place.failed(error))
            }
            #[cfg(test)]
            Reading::Script(script) => script.frame().await,
        }
    }

    /// Whoever reads it takes nothing for so long, of its own will.
    pub fn rests(&mut self, rest: Duration) {
        match &mut self.bytes {
            Reading::Peer(stream) => stream.rests(Instant::now() + rest),
            #[cfg(test)]
            Reading::Script(_) => {}
        }
    }

    /// What the peer said of the whole at the end: known once [`Self::frame`] has given `None`, at most two seconds later.
    pub async fn parted(&mut self) -> Parted {
        match &mut self.bytes {
            Reading::Peer(stream) => stream.parted().await,
            #[cfg(test)]
            Reading::Script(script) => script.parted(),
        }
    }
}

/// What a peer sends, and what is checked of it.
struct FromPeer {
    place: Place,
    incoming: Incoming,
    /// Checked, and not yet given.
    ready: VecDeque<Bytes>,
    /// From when on what is ready is within the limits: it is paid for.
    due: Option<Instant>,
    /// Until when the reading knows of the rest.
    known_rest: Option<Instant>,
    /// The first byte that hasn't come.
    at: u64,
    end: u64,
    parted: Option<Parting>,
    counted: Streaming,
}

impl FromPeer {
    const fn node(&self) -> NodeId {
        self.place.opening.node
    }

    async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
                self.due = None;
            }
            if let Some(bytes) = self.ready.pop_front() {
                return Ok(Some(bytes));
            }
            if self.at >= self.end {
                return Ok(None);
            }
            if let Some(parting) = self.parted.take() {
                return Err(PeerError::Parted { node: self.node(), parting });
            }
            match self.incoming.part().await? {
                Some(Part::Data(pieces)) => self.take(pieces)?,
                Some(Part::Other(reply)) => self.told(reply)?,
                None => return Err(PeerError::Unreachable { node: self.node(), why: "it ended short".to_owned() }),
            }
        }
    }

    fn take(&mut self, pieces: VecDeque<Bytes>) -> Result<(), PeerError> {
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        if len > self.end - self.at {
            return Err(PeerError::Senseless { node: self.node(), what: "more bytes than were asked for" });
        }
        self.at += len;
        self.ready = pieces;
        self.place.chain.inner().slack.gave(self.node());
        self.counted.add(len);
        let limiter = self.place.chain.inner().download.as_ref();
        self.due = limiter.and_then(|limiter| limiter.charge(self.node(), len));
        if let Some(due) = self.due {
            self.rests(due);
        }
        Ok(())
    }

    /// Nothing is read until then: it isn't the peer that is silent.
    fn rests(&mut self, until: Instant) {
        if self.place.is_aside || self.known_rest.is_some_and(|told| until < told + WORTH_TELLING) {
            return;
        }
        self.known_rest = Some(until);
        self.place.chain.rests(self.place.reading, self.place.opening.number, until);
    }

    fn told(&mut self, reply: ReadReply) -> Result<(), PeerError> {
        let node = self.node();
        match reply.part {
            Some(read_reply::Part::Beat(beat)) => {
                self.place.chain.beat(self.place.reading, self.place.opening.number, beat);
            }
            Some(read_reply::Part::Parting(parting)) => {
                let parting = messages::parting(parting).map_err(|e| PeerError::Senseless { node, what: e.0 })?;
                self.parted = Some(parting);
            }
            Some(read_reply::Part::Head(_)) => return Err(PeerError::Senseless { node, what: "a second head" }),
            // Of a newer version; data has its own way.
            Some(read_reply::Part::Data(_)) | None => {}
        }
        Ok(())
    }

    async fn parted(&mut self) -> Parted {
        let deadline = Instant::now() + PARTING;
        loop {
            match self.parted.take() {
                Some(Parting::Held) => return Parted::Held,
                Some(Parting::Broken(sources)) => return Parted::Broken(sources),
                Some(parting) => {
                    tracing::trace!(node = %self.node(), parting = label(&parting), "a peer says nothing of the whole");
                    return Parted::Unknown;
                }
                None => {}
            }
            match timeout_at(deadline, self.incoming.part()).await {
                Ok(Ok(Some(Part::Other(reply)))) => {
                    if self.told(reply).is_err() {
                        return Parted::Unknown;
                    }
                }
                _ => return Parted::Unknown,
            }
        }
    }
}

impl fmt::Debug for FromPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FromPeer({}, {}..{})", self.node(), self.at, self.end)
    }
}

/// What a peer knows of the whole at the end of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parted {
    /// Its digest holds there.
    Held,
    /// It doesn't: it came so from these upstreams.
    Broken(Vec<String>),
    /// It didn't say.
    Unknown,
}
