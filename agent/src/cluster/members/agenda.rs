use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::image::NodeId;

use super::identity::Identity;

/// What is to be done later.
#[derive(Debug)]
pub(super) enum Task {
    /// SWIM's own.
    Swim(foca::Timer<Identity>),
    /// This process has been here for long enough to own something.
    SettleMe,
    /// So has that one, if it is still up.
    Settle { node: NodeId, start: u64 },
    /// Ask for the next page of the roll; of several the last that was set counts.
    Roll { turn: u32 },
    /// See whether a node in doubt has answered.
    Doubt(NodeId),
    /// It is dead, unless it has spoken up since.
    Bury { identity: Identity, incarnation: foca::Incarnation },
    /// Come back after having been taken for dead.
    Renew,
    /// See to the other that claims to be this node.
    Twin,
}

/// The tasks, by when they are due.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    heap: BinaryHeap<Reverse<Item>>,
    /// Tells those of the same moment apart: first come, first done.
    count: u64,
}

#[derive(Debug)]
struct Item {
    due: Duration,
    number: u64,
    task: Task,
}

impl Agenda {
    pub(super) fn add(&mut self, due: Duration, task: Task) {
        self.count += 1;
        self.heap.push(Reverse(Item { due, number: self.count, task }));
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(item)| item.due)
    }

    /// The next one, if it is due.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Task> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(item)| item.task)
    }

    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Item {}
