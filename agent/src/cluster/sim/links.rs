//! Links: a queue of streams that have something to send, a piece at a time each, and what they become.

use std::collections::VecDeque;
use std::time::Duration;

use super::events::{Event, Spot};
use super::world::World;

/// So much of a stream may be under way, in pieces, in bytes, or in times as much as is on the way at the link's rate,
/// whatever is more.
const WINDOW_PIECES: u64 = 4;
const WINDOW_BYTES: u64 = 512 << 10;
const WINDOW_DELAYS: f64 = 2.0;

/// One direction of a link.
#[derive(Debug)]
pub(super) struct Link {
    /// Bytes a second.
    pub(super) rate: f64,
    pub(super) is_busy: bool,
    pub(super) ready: VecDeque<usize>,
}

/// A stream of one blob's bytes.
#[derive(Debug)]
pub(super) struct Stream {
    /// The link that it goes out by; that of upstream is after those of all nodes.
    pub(super) sender: usize,
    /// Who reads.
    pub(super) reader: Spot,
    pub(super) opening: u64,
    /// The next byte to send.
    pub(super) at: u64,
    /// The first that isn't to be sent.
    pub(super) end: u64,
    pub(super) under_way: u64,
    pub(super) is_ready: bool,
    /// The sender serves it.
    pub(super) is_open: bool,
    /// The reader has left it.
    pub(super) is_closed: bool,
    /// The sender has ended it.
    pub(super) is_ended: bool,
    /// When what was sent last arrives: what comes after arrives after.
    pub(super) arrives: Duration,
    /// Slower than the link, in bytes a second; and when the next piece may go.
    pub(super) pace: Option<f64>,
    pub(super) not_before: Duration,
    /// When it was asked for.
    pub(super) began: Duration,
    /// Since when the reader is out of reach.
    pub(super) unheard_since: Option<Duration>,
}

pub(super) fn seconds(bytes: u64, rate: f64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate)
}

impl World {
    pub(super) const fn upstream(&self) -> usize {
        self.nodes.len()
    }

    /// The next piece of a stream, in bytes; 0 if there is none now.
    fn next_piece(&self, number: usize) -> u64 {
        let stream = &self.streams[number];
        if !stream.is_open || stream.is_ended || (stream.is_closed && stream.sender != self.upstream()) {
            return 0;
        }
        let on_its_way = (WINDOW_DELAYS * self.cluster.link * self.cluster.delay.as_secs_f64()) as u64;
        let window = (WINDOW_PIECES * self.cluster.piece).max(WINDOW_BYTES).max(on_its_way);
        if stream.under_way + self.cluster.piece > window {
            return 0;
        }
        let (there, end) = if stream.sender == self.upstream() {
            (stream.end, stream.end)
        } else {
            let Some(blob) = &self.nodes[stream.sender].pulls[stream.reader.blob] else { return 0 };
            let bound = blob.serve.bound(number as u64).unwrap_or(u64::MAX);
            (blob.frontier.min(bound), stream.end.min(bound))
        };
        let there = there.saturating_sub(stream.at);
        // Forwarded in whole pieces, but at the end.
        if stream.at + there < end && there < self.cluster.piece { 0 } else { there.min(self.cluster.piece) }
    }

    /// A stream may have something to send.
    pub(super) fn wake(&mut self, number: usize) {
        if self.streams[number].is_ready || self.next_piece(number) == 0 {
            return;
        }
        let sender = self.streams[number].sender;
        self.streams[number].is_ready = true;
        self.links[sender].ready.push_back(number);
        self.send(sender);
    }

    /// A link takes the next piece.
    pub(super) fn send(&mut self, link: usize) {
        let now = self.now;
        let mut later = Vec::new();
        while !self.links[link].is_busy {
            let Some(number) = self.links[link].ready.pop_front() else { break };
            if self.streams[number].not_before > now {
                later.push(number);
                continue;
            }
            self.streams[number].is_ready = false;
            let bytes = self.next_piece(number);
            if bytes == 0 {
                continue;
            }
            let reader = self.streams[number].reader;
            let took = seconds(bytes, self.links[link].rate);
            let delay = if link == self.upstream() { Duration::ZERO } else { self.cluster.delay };
            let first = now + delay;
            let down_rate = self.downs[reader.node].rate;
            let down = &mut self.downs[reader.node].free;
            let arrives = (first + took).max(first.max(*down) + seconds(bytes, down_rate));
            *down = arrives;
            let stream = &mut self.streams[number];
            stream.at += bytes;
            stream.under_way += bytes;
            stream.arrives = arrives;
            if let Some(pace) = stream.pace {
                stream.not_before = now + seconds(bytes, pace);
            }
            self.links[link].is_busy = true;
            self.queue.push(now + took, Event::LinkFree { link });
            self.queue.push(arrives, Event::Piece { stream: number, bytes });
            if link == self.upstream() {
                self.upstream_bytes += bytes;
            } else {
                if self.nodes[link].zone != self.nodes[reader.node].zone {
                    self.crossed += bytes;
                }
                self.sent(number, bytes);
            }
            self.wake(number);
        }
        for number in later {
            self.queue.push(self.streams[number].not_before, Event::LinkFree { link: usize::MAX });
            self.links[link].ready.push_back(number);
        }
    }

    /// A piece has come to its reader.
    pub(super) fn piece(&mut self, number: usize, bytes: u64) {
        let stream = &mut self.streams[number];
        stream.under_way -= bytes;
        let (spot, is_closed) = (stream.reader, stream.is_closed);
        let frontier = stream.at - stream.under_way;
        let is_upstream = stream.sender == self.nodes.len();
        let is_taken = !is_closed && self.reaches_reader(number);
        if self.cluster.checked && is_upstream && is_taken {
            self.watch_upstream(spot, frontier - bytes, bytes);
        }
        if is_taken {
            self.arrived(spot, frontier);
        }
        self.wake(number);
    }
}
