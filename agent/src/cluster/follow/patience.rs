//! How long a pull waits for the cluster.

use std::time::Duration;

/// What a pull has to spend on waiting, and what it has at most.
const ALL: Duration = Duration::from_millis(1_500);
/// A pause that isn't waiting yet: a slow upstream brings a piece now and then.
const SHORT: Duration = Duration::from_millis(500);
/// What a source that is tried after patience ran out gets.
const LITTLE: Duration = Duration::from_millis(500);
/// For each reader that the bytes have to come through before they come here, at first.
const PER_READER: Duration = Duration::from_millis(5);
const MOST_FOR_READERS: Duration = Duration::from_secs(20);

/// The time that a pull may wait without a sign that bytes are coming: two seconds, and after that a tenth of the time in
/// which they came.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    /// The last sign.
    last: Duration,
}

impl Patience {
    pub(super) const fn new(now: Duration) -> Self {
        Self { left: ALL, last: now }
    }

    /// Bytes came, or came nearer.
    pub(super) fn sign(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.last);
        self.left = match gap.checked_sub(SHORT) {
            Some(waited) => self.left.saturating_sub(waited),
            None => (self.left + gap / 10).min(ALL.max(self.left)),
        };
        self.last = self.last.max(now);
    }

    /// Bytes came, and are taken no sooner than then: until then nothing is waited for.
    pub(super) fn rest(&mut self, now: Duration, until: Duration) {
        self.sign(now);
        self.last = self.last.max(until);
    }

    /// What waits begins now.
    pub(super) fn begin(&mut self, now: Duration) {
        self.last = now;
    }

    /// So many others come first.
    pub(super) fn stand_behind(&mut self, others: u32) {
        self.left = self.left.max(ALL + (PER_READER * others).min(MOST_FOR_READERS));
    }

    /// Another source is tried.
    pub(super) fn try_another(&mut self, now: Duration) {
        self.begin(now);
        self.left = self.left.max(LITTLE);
    }

    /// All of it again.
    pub(super) fn renew(&mut self, now: Duration) {
        self.begin(now);
        self.left = self.left.max(ALL);
    }

    /// When it has run out, if nothing comes.
    pub(super) fn deadline(&self) -> Duration {
        self.last + SHORT + self.left
    }
}
