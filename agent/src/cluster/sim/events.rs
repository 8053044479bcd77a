//! What happens, in the order of time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::cluster::chain::{Beat, Lease, Parting};
use crate::cluster::directory::{Answered, Ask, Report, Verdict};
use crate::cluster::serve::Reader;
use crate::image::NodeId;

/// A pull of one blob on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Spot {
    pub(super) node: usize,
    pub(super) blob: usize,
}

#[derive(Debug)]
pub(super) enum Event {
    Begin {
        node: usize,
    },
    /// A pull's deadline.
    Tick(Spot),
    /// A sender's deadline.
    TickServe(Spot),
    TickOwner {
        node: usize,
    },
    Asked {
        owner: usize,
        from: Spot,
        number: u64,
        ask: Box<Ask>,
        call: u64,
    },
    Answered {
        to: Spot,
        number: u64,
        answered: Option<Box<Answered>>,
    },
    Reported {
        owner: usize,
        from: Spot,
        report: Box<Report>,
        call: u64,
    },
    /// A small call has its answer, or is waited for no more.
    Called {
        node: usize,
        call: u64,
        has_answered: bool,
    },
    Judged {
        to: Spot,
        owner: usize,
        lease: Lease,
        verdict: Option<Verdict>,
    },
    /// A stream's request has come to its sender.
    Requested {
        stream: usize,
        reader: Box<Reader>,
    },
    Opened {
        stream: usize,
    },
    /// A stream's sender is to beat.
    BeatDue {
        stream: usize,
    },
    Beat {
        stream: usize,
        beat: Box<Beat>,
    },
    Parted {
        stream: usize,
        parting: Box<Parting>,
    },
    /// A stream's connection broke.
    Broke {
        stream: usize,
    },
    /// A reader has closed a stream, and the sender knows.
    Closed {
        stream: usize,
    },
    /// A link can take another piece: a node's, or, with `usize::MAX`, upstream's.
    LinkFree {
        link: usize,
    },
    /// A piece has come.
    Piece {
        stream: usize,
        bytes: u64,
    },
    Fault {
        fault: usize,
    },
    /// Everybody sees the members that there are.
    Noticed,
    /// A node sees whether another is there.
    Sees {
        node: usize,
        other: usize,
    },
    /// A node is to tell an owner what it has whole.
    ToAnnounce {
        from: Spot,
        owner: NodeId,
    },
    Announced {
        from: Spot,
        owner: usize,
    },
    /// A node that has given up begins again.
    Again {
        node: usize,
    },
}

#[derive(Debug)]
struct Due {
    at: Duration,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Due>,
    order: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: Duration, event: Event) {
        self.order += 1;
        self.heap.push(Due { at, order: self.order, event });
    }

    pub(super) fn pop(&mut self) -> Option<(Duration, Event)> {
        self.heap.pop().map(|due| (due.at, due.event))
    }
}
