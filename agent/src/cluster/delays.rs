//! How long an answer may take at present.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::image::NodeId;

/// What is late over links that carry little else, and what is late over any.
const USUAL: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_millis(600);
/// Answers are remembered for one of these at least, and for two at most.
const WINDOW: Duration = Duration::from_secs(2);
/// As long as calls to fewer nodes are under way, they say nothing of all the others.
const TELLING: usize = 3;

/// The small calls of this node to others, and how long they take: over full links an answer takes many times as long as
/// over idle ones, and who takes each late one for dead does himself what another is doing already.
///
/// When most of those that are asked keep silent, it is the links; when one does, it is that one.
#[derive(Debug, Default)]
pub struct Delays {
    under_way: BTreeMap<u64, (NodeId, Duration)>,
    next: u64,
    /// When the window of now began, and the slowest answer in it and in the one before.
    began: Duration,
    slowest: [Duration; 2],
}

impl Delays {
    /// `node` is asked something. The number is for [`Self::ended`].
    pub fn asked(&mut self, now: Duration, node: NodeId) -> u64 {
        self.next += 1;
        self.under_way.insert(self.next, (node, now));
        self.next
    }

    /// It has answered, or is waited for no more.
    pub fn ended(&mut self, now: Duration, number: u64, has_answered: bool) {
        let Some((_, asked)) = self.under_way.remove(&number) else { return };
        if has_answered {
            self.turn(now);
            self.slowest[0] = self.slowest[0].max(now.saturating_sub(asked));
        }
    }

    /// After how long an answer is late.
    pub fn late(&mut self, now: Duration) -> Duration {
        self.turn(now);
        let [this, before] = self.slowest;
        (USUAL + 2 * this.max(before).max(self.waits(now))).min(LONGEST)
    }

    fn turn(&mut self, now: Duration) {
        let windows = now.saturating_sub(self.began).as_millis() / WINDOW.as_millis();
        if windows > 0 {
            self.slowest = [Duration::ZERO, if windows == 1 { self.slowest[0] } else { Duration::ZERO }];
            self.began = now;
        }
    }

    /// How long half of those that are being asked have kept silent.
    fn waits(&self, now: Duration) -> Duration {
        let mut silent: BTreeMap<NodeId, Duration> = BTreeMap::new();
        for (node, asked) in self.under_way.values() {
            let longest = silent.entry(*node).or_default();
            *longest = (*longest).max(now.saturating_sub(*asked));
        }
        let mut silent: Vec<Duration> = silent.into_values().collect();
        silent.sort_unstable();
        if silent.len() < TELLING { Duration::ZERO } else { silent[silent.len() / 2] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 16])
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn slow_answers_make_it_wait_longer_for_a_while() {
        let mut delays = Delays::default();
        let call = delays.asked(millis(0), node(1));
        delays.ended(millis(150), call, true);
        assert_eq!(delays.late(millis(150)), millis(400));
        assert_eq!(delays.late(millis(2_100)), millis(400));
        assert_eq!(delays.late(millis(6_000)), USUAL);
        let call = delays.asked(millis(6_000), node(1));
        delays.ended(millis(7_500), call, true);
        assert_eq!(delays.late(millis(7_500)), LONGEST);
    }

    #[test]
    fn one_that_is_silent_is_late_and_when_all_are_it_is_the_links() {
        let mut delays = Delays::default();
        for number in 1..=20 {
            // However many wait for it.
            delays.asked(millis(0), node(1));
            let call = delays.asked(millis(number), node(number as u8 + 1));
            delays.ended(millis(number + 1), call, true);
        }
        assert_eq!(delays.late(millis(500)), millis(102));
        delays.asked(millis(600), node(2));
        delays.asked(millis(600), node(3));
        assert_eq!(delays.late(millis(700)), millis(300));
    }

    #[test]
    fn who_never_answered_says_nothing() {
        let mut delays = Delays::default();
        let call = delays.asked(millis(0), node(1));
        delays.ended(millis(700), call, false);
        assert_eq!(delays.late(millis(700)), USUAL);
    }
}
