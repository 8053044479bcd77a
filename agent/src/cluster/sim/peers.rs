//! Streams between nodes, and from upstream.

use std::time::Duration;

use crate::cluster::chain::{BEAT_EVERY, Beat, Parting};
use crate::cluster::directory::Released;
use crate::cluster::follow::{Opening, Turn};
use crate::cluster::serve::Reader;

use super::events::{Event, Spot};
use super::links::Stream;
use super::node::Life;
use super::world::World;

const BEAT_BYTES: u64 = 450;
const OPEN_BYTES: u64 = 400;
/// A driver tries an upstream that doesn't answer again after so long.
const RETRY: Duration = Duration::from_millis(200);
/// A sender notices after so long that its reader is gone.
const KEEPALIVE: Duration = Duration::from_secs(2);

impl World {
    /// Does what a pull's turn says.
    pub(super) fn obey(&mut self, spot: Spot) {
        let Some(blob) = &self.nodes[spot.node].pulls[spot.blob] else { return };
        let Some(follow) = &blob.follow else { return };
        let current = blob.stream;
        match follow.turn() {
            Turn::Wait => self.close(current),
            Turn::Upstream { upto } => {
                let end = upto.min(self.cluster.blobs[spot.blob]);
                let frontier = blob.frontier;
                let goes_on = current.filter(|number| self.streams[*number].sender == self.upstream());
                if let Some(number) = goes_on {
                    let stream = &mut self.streams[number];
                    if stream.end < end {
                        // What comes next is asked for while the rest is on its way; if nothing is left, it takes as long as
                        // any request.
                        if stream.at >= stream.end {
                            self.upstream_requests += 1;
                            stream.not_before = self.now + self.cluster.upstream_delay;
                        }
                        stream.end = end;
                        self.wake(number);
                    }
                    return;
                }
                self.close(current);
                if frontier < end {
                    self.open_upstream(spot, frontier, end);
                }
            }
            Turn::Peer(opening) => {
                let stands = current.is_some_and(|number| {
                    let stream = &self.streams[number];
                    stream.sender != self.upstream() && stream.opening == opening.number
                });
                if !stands {
                    self.close(current);
                    self.open_peer(spot, opening);
                }
            }
        }
    }

    fn open_upstream(&mut self, spot: Spot, from: u64, end: u64) {
        self.upstream_requests += 1;
        tracing::trace!("{:?} {spot:?} upstream {from}..{end}", self.now);
        let node = &self.nodes[spot.node];
        let pace = node.upstream_part.map(|part| part * self.cluster.link);
        let number = self.begin_stream(self.upstream(), spot, 0, from, end);
        self.streams[number].pace = pace;
        let answers = self.upstream_answers;
        let after = if answers { self.cluster.upstream_delay } else { self.cluster.upstream_delay.max(RETRY) };
        self.queue.push(self.now + after, Event::Opened { stream: number });
    }

    fn open_peer(&mut self, spot: Spot, opening: Opening) {
        let sender = self.by_id[&opening.node];
        let Some(blob) = &self.nodes[spot.node].pulls[spot.blob] else { return };
        let from = blob.frontier;
        self.opened_streams += 1;
        tracing::trace!("{:?} {spot:?} opens {sender} {opening:?} from {from}", self.now);
        self.count_message(OPEN_BYTES);
        let number = self.begin_stream(sender, spot, opening.number, from, self.cluster.blobs[spot.blob]);
        let reader = Reader {
            node: self.nodes[spot.node].id,
            ticket: opening.ticket,
            instead_of: opening.instead_of,
            insists: opening.insists,
            from,
        };
        let at = self.now + self.cluster.delay;
        if self.is_near(spot.node, sender) {
            self.queue.push(at, Event::Requested { stream: number, reader: Box::new(reader) });
        } else if self.nodes[sender].life == Life::Killed {
            self.queue.push(at + self.cluster.delay, Event::Broke { stream: number });
        }
    }

    fn begin_stream(&mut self, sender: usize, reader: Spot, opening: u64, at: u64, end: u64) -> usize {
        let number = self.streams.len();
        self.streams.push(Stream {
            sender,
            reader,
            opening,
            at,
            end,
            under_way: 0,
            is_ready: false,
            is_open: false,
            is_closed: false,
            is_ended: false,
            arrives: Duration::ZERO,
            pace: None,
            not_before: Duration::ZERO,
            began: self.now,
            unheard_since: None,
        });
        if let Some(blob) = &mut self.nodes[reader.node].pulls[reader.blob] {
            blob.stream = Some(number);
        }
        self.is_graph_new = true;
        number
    }

    /// The reader leaves a stream.
    pub(super) fn close(&mut self, stream: Option<usize>) {
        let Some(number) = stream else { return };
        let stream = &mut self.streams[number];
        stream.is_closed = true;
        let (reader, sender) = (stream.reader, stream.sender);
        if let Some(blob) = self.nodes[reader.node].pulls[reader.blob].as_mut() {
            blob.stream = blob.stream.filter(|current| *current != number);
        }
        self.is_graph_new = true;
        if sender == self.upstream() {
            // What is in the pipe comes all the same.
            let at = self.now + self.cluster.upstream_delay / 2;
            self.queue.push(at, Event::Closed { stream: number });
        } else if self.is_near(reader.node, sender) {
            self.queue.push(self.now + self.cluster.delay, Event::Closed { stream: number });
        }
    }

    /// Can what its sender says still reach the reader?
    pub(super) fn reaches_reader(&self, number: usize) -> bool {
        let stream = &self.streams[number];
        let reader = stream.reader.node;
        let is_live = self.nodes[reader].pulls[stream.reader.blob].as_ref();
        let is_current = is_live.is_some_and(|blob| blob.stream == Some(number));
        is_current && (stream.sender == self.upstream() || self.is_near(stream.sender, reader))
    }

    pub(super) fn requested(&mut self, number: usize, reader: &Reader) {
        let (sender, spot) = (self.streams[number].sender, self.streams[number].reader);
        let now = self.now;
        let Some(blob) = self.nodes[sender].pulls[spot.blob].as_mut() else {
            self.watch_absence(spot, sender);
            self.part(number, Parting::Absent);
            return;
        };
        match blob.serve.admit(now, number as u64, reader) {
            Ok(()) => {
                blob.sends.push(number);
                self.streams[number].is_open = true;
                self.queue.push(now + self.cluster.delay, Event::Opened { stream: number });
                self.queue.push(now, Event::BeatDue { stream: number });
            }
            Err(parting) => self.part(number, parting),
        }
        self.is_graph_new = true;
        self.settle_serve(Spot { node: sender, blob: spot.blob });
        self.wake(number);
    }

    pub(super) fn opened(&mut self, number: usize) {
        let (spot, opening) = (self.streams[number].reader, self.streams[number].opening);
        let now = self.now;
        if !self.reaches_reader(number) || self.streams[number].is_closed {
            return;
        }
        let size = self.cluster.blobs[spot.blob];
        if self.streams[number].sender != self.upstream() {
            self.with_follow(spot, |follow| {
                follow.learnt_size(size);
                follow.opened(now, opening);
            });
            return;
        }
        if self.upstream_answers {
            self.streams[number].is_open = true;
            self.with_follow(spot, |follow| follow.learnt_size(size));
            self.wake(number);
        } else {
            self.upstream_broke(number);
        }
    }

    /// Upstream is no use to a stream.
    pub(super) fn upstream_broke(&mut self, number: usize) {
        let (spot, now) = (self.streams[number].reader, self.now);
        self.streams[number].is_ended = true;
        if self.streams[number].is_closed {
            return;
        }
        self.close(Some(number));
        if self.cluster.checked {
            self.watch_failure(spot, self.streams[number].began);
        }
        self.with_follow(spot, |follow| follow.upstream_failed(now, Released::Unreachable));
    }

    pub(super) fn beat_due(&mut self, number: usize) {
        let (sender, spot) = (self.streams[number].sender, self.streams[number].reader);
        let stream = &self.streams[number];
        if stream.is_ended || !stream.is_open || !self.nodes[sender].is_up() {
            return;
        }
        let now = self.now;
        let is_near = self.is_near(sender, spot.node);
        let stream = &mut self.streams[number];
        if is_near {
            stream.unheard_since = None;
        } else if now - *stream.unheard_since.get_or_insert(now) >= KEEPALIVE {
            self.closed(number);
            return;
        }
        if is_near && self.streams[number].is_closed {
            self.closed(number);
            return;
        }
        let Some(blob) = &mut self.nodes[sender].pulls[spot.blob] else { return };
        let (rate, path) = blob.follow.as_ref().map_or((0, &[][..]), |follow| (follow.rate(now), follow.path()));
        let beat = blob.serve.beat(number as u64, rate, path);
        self.count_message(BEAT_BYTES);
        let at = (now + self.cluster.delay).max(self.streams[number].arrives);
        self.queue.push(at, Event::Beat { stream: number, beat: Box::new(beat) });
        self.queue.push(now + BEAT_EVERY, Event::BeatDue { stream: number });
    }

    pub(super) fn beat(&mut self, number: usize, beat: Beat) {
        let (spot, opening, now) = (self.streams[number].reader, self.streams[number].opening, self.now);
        if self.reaches_reader(number) {
            self.with_follow(spot, |follow| follow.beat(now, opening, beat));
        }
    }

    /// The sender ends a stream, after what it has sent.
    pub(super) fn part(&mut self, number: usize, parting: Parting) {
        let stream = &mut self.streams[number];
        if stream.is_ended {
            return;
        }
        stream.is_ended = true;
        let (sender, blob) = (stream.sender, stream.reader.blob);
        if let Some(blob) = &mut self.nodes[sender].pulls[blob] {
            blob.sends.retain(|other| *other != number);
        }
        self.is_graph_new = true;
        let at = (self.now + self.cluster.delay).max(self.streams[number].arrives);
        self.queue.push(at, Event::Parted { stream: number, parting: Box::new(parting) });
    }

    pub(super) fn parted(&mut self, number: usize, parting: &Parting) {
        let (spot, opening, now) = (self.streams[number].reader, self.streams[number].opening, self.now);
        tracing::trace!(
            "{now:?} {spot:?} parted by {} {parting:?} live {}",
            self.streams[number].sender,
            self.reaches_reader(number)
        );
        if self.reaches_reader(number) {
            self.close(Some(number));
            self.with_follow(spot, |follow| follow.parted(now, opening, parting));
        }
    }

    pub(super) fn broke(&mut self, number: usize) {
        let (spot, opening, now) = (self.streams[number].reader, self.streams[number].opening, self.now);
        let is_current =
            self.nodes[spot.node].pulls[spot.blob].as_ref().is_some_and(|blob| blob.stream == Some(number));
        if is_current {
            self.close(Some(number));
            self.with_follow(spot, |follow| follow.lost(now, opening));
        }
    }

    /// The sender knows that the reader has left.
    pub(super) fn closed(&mut self, number: usize) {
        let (sender, blob) = (self.streams[number].sender, self.streams[number].reader.blob);
        self.streams[number].is_ended = true;
        if sender == self.upstream() {
            return;
        }
        if let Some(blob) = &mut self.nodes[sender].pulls[blob] {
            blob.serve.ended(number as u64);
            blob.sends.retain(|other| *other != number);
        }
        self.settle_serve(Spot { node: sender, blob });
    }

    /// A node has handed bytes to the connection of a stream.
    pub(super) fn sent(&mut self, number: usize, bytes: u64) {
        let (sender, blob) = (self.streams[number].sender, self.streams[number].reader.blob);
        let is_all = self.streams[number].at >= self.cluster.blobs[blob];
        let spot = Spot { node: sender, blob };
        let Some(blob) = &mut self.nodes[sender].pulls[blob] else { return };
        blob.serve.sent(number as u64, bytes);
        if is_all {
            blob.serve.ended(number as u64);
            let parting = if blob.is_whole { Parting::Held } else { Parting::Sent };
            self.part(number, parting);
        }
        self.settle_serve(spot);
    }
}
