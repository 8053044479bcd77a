//! What has an end, and what happens then.

use std::time::Duration;

use crate::cluster::chain::Ailment;
use crate::cluster::directory::REPORT_READING_EVERY;

use super::reading::SILENCE;
use super::{ASK_AGAIN_AT_MOST, Action, Follow, OWNER_IS_LATE, REPORT_EVERY, Source, piece_after};

impl Follow {
    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.is_over {
            return;
        }
        self.look_at_asks(now);
        if self.has_all() {
            return;
        }
        let (silence, late, patience_until) = (self.silence(), self.late, self.patience_until());
        let is_to_complain = self.is_to_complain(now);
        let is_to_look = self.looks_at().is_some_and(|at| now >= at);
        match &mut self.source {
            Source::Peer(reading) if now.saturating_sub(reading.silent_since()) >= silence => {
                self.losses = self.losses.saturating_add(1);
                self.leave_parent(now, Some(Ailment::Silent));
            }
            Source::Peer(reading) => {
                let parent = reading.opening.node;
                if now >= patience_until && reading.has_more_than(self.frontier) {
                    self.actions.push(Action::KeptWaiting(parent));
                }
                if is_to_complain {
                    self.complain(now, parent);
                } else if now >= patience_until {
                    self.troubles.note(now, parent, Ailment::Full);
                    self.go_alone(now);
                } else if now.saturating_sub(self.told_reading) >= REPORT_READING_EVERY {
                    self.tell_reading(now);
                } else if is_to_look {
                    self.look_about(now, parent);
                }
            }
            Source::Lease(range) if range.has_ended => {
                range.reported = now;
                if self.meter.rate(now) == 0.0 {
                    self.readers_lag = 0;
                }
                self.yield_or_go_on(now);
            }
            Source::Lease(range) => {
                if range.waits.is_some_and(|since| now.saturating_sub(since) >= late) {
                    range.waits = None;
                    // More than the range may have come: from who knows no ranges, or to the end of a chunk.
                    range.upto = piece_after(range.upto.max(self.frontier));
                    self.report_elsewhere(now);
                } else if now.saturating_sub(range.reported) >= REPORT_EVERY {
                    self.report_lease(now);
                }
            }
            Source::Own { ask_at, .. } => {
                if ask_at.is_some_and(|at| now >= at) {
                    self.ask_again = (self.ask_again * 2).min(ASK_AGAIN_AT_MOST.max(self.ask_again));
                    *ask_at = Some(now + self.ask_again);
                    self.ask(now);
                }
            }
            Source::Nothing => self.look_for_source(now),
        }
    }

    /// When to call [`Self::tick`] next, at the latest. `None` once all of it is here, or it was left; and as long as it is
    /// fetched from upstream, and there is no owner to ask.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.is_over || self.has_all() {
            return None;
        }
        let own = match &self.source {
            Source::Peer(reading) => {
                let heard_until = (reading.silent_since() + self.silence()).min(self.patience_until());
                let asks = [self.hungry_at(), self.looks_at(), Some(self.told_reading + REPORT_READING_EVERY)];
                Some(asks.into_iter().flatten().fold(heard_until, Duration::min))
            }
            Source::Lease(range) => {
                let reports = range.reported + REPORT_EVERY;
                Some(range.waits.map_or(reports, |since| reports.min(since + self.late)))
            }
            Source::Own { ask_at, .. } => *ask_at,
            Source::Nothing => Some(self.nothing_until()),
        };
        [own, self.asks_until()].into_iter().flatten().min()
    }

    /// How long a peer may be silent: the longer, the more were so in a row, and the longer answers take. A link that is
    /// filled, were it with what nobody waits for any more, makes everybody look dead; and a connection has to be made
    /// first.
    fn silence(&self) -> Duration {
        SILENCE * (1 << self.losses.min(2)) + 2 * self.delay()
    }

    /// When patience ends, if nothing comes.
    pub(super) fn patience_until(&self) -> Duration {
        self.patience.deadline() + 4 * self.delay()
    }

    /// How much longer than usual answers take.
    pub(super) const fn delay(&self) -> Duration {
        self.late.saturating_sub(OWNER_IS_LATE)
    }
}
