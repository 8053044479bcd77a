//! What this node's link has room for.

use std::collections::VecDeque;
use std::time::Duration;

/// What is looked back upon.
const WINDOW: Duration = Duration::from_secs(1);
const SAMPLE: Duration = Duration::from_millis(50);
/// The most that came at a time is remembered for one of these at least, and for two at most.
const REMEMBERED: Duration = Duration::from_secs(30);

/// What comes to this node, of all that it reads, from wherever.
///
/// A link that brings less than half of what it has brought of late has room: a stream that brings little then is held up
/// elsewhere, and not by others of this node.
#[derive(Debug, Default)]
pub struct Intake {
    /// How much had come in all, at some times.
    samples: VecDeque<(Duration, u64)>,
    all: u64,
    /// When the time of now began, and the most bytes in one [`WINDOW`] in it and in the one before.
    began: Duration,
    most: [u64; 2],
}

impl Intake {
    /// So many bytes more are here.
    pub fn came(&mut self, now: Duration, bytes: u64) {
        self.all = self.all.saturating_add(bytes);
        match self.samples.back_mut() {
            Some((at, all)) if now.saturating_sub(*at) < SAMPLE => *all = self.all,
            _ => self.samples.push_back((now, self.all)),
        }
        let recent = self.recent(now);
        self.turn(now);
        self.most[0] = self.most[0].max(recent);
    }

    /// How much more could come, in bytes a second. Nothing as long as half of it does.
    pub fn room(&mut self, now: Duration) -> u64 {
        let recent = self.recent(now);
        self.turn(now);
        let [this, before] = self.most;
        let most = this.max(before);
        let room = if recent < most / 2 { most - recent } else { 0 };
        (room as f64 / WINDOW.as_secs_f64()) as u64
    }

    /// What came in the last [`WINDOW`].
    fn recent(&mut self, now: Duration) -> u64 {
        // The last one before the window says what had come by then.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.samples.pop_front();
        }
        let before = match self.samples.front() {
            Some((at, all)) if now.saturating_sub(*at) >= WINDOW => *all,
            _ => 0,
        };
        self.all - before
    }

    fn turn(&mut self, now: Duration) {
        let times = u32::try_from(now.saturating_sub(self.began).as_millis() / REMEMBERED.as_millis());
        let times = times.unwrap_or(u32::MAX);
        if times > 0 {
            self.most = [0, if times == 1 { self.most[0] } else { 0 }];
            self.began = self.began.saturating_add(REMEMBERED.saturating_mul(times));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLIS: Duration = Duration::from_millis(1);

    /// So many bytes every 10 ms, from one time to another.
    fn comes(intake: &mut Intake, millis: std::ops::Range<u32>, bytes: u64) {
        for at in millis.step_by(10) {
            intake.came(MILLIS * at, bytes);
        }
    }

    #[test]
    fn a_link_has_room_when_half_of_what_came_comes_no_more() {
        let mut intake = Intake::default();
        assert_eq!(intake.room(MILLIS), 0, "nothing has come");
        comes(&mut intake, 0..2_000, 1_000);
        assert_eq!(intake.room(MILLIS * 2_000), 0);
        comes(&mut intake, 2_000..4_000, 600);
        assert_eq!(intake.room(MILLIS * 4_000), 0, "more than half of it");
        comes(&mut intake, 4_000..6_000, 300);
        let room = intake.room(MILLIS * 6_000);
        assert!((60_000..80_000).contains(&room), "{room}");
        assert!(intake.room(MILLIS * 8_000) >= 95_000, "nothing comes");
    }

    #[test]
    fn what_came_once_is_forgotten() {
        let mut intake = Intake::default();
        comes(&mut intake, 0..2_000, 10_000);
        comes(&mut intake, 2_000..29_000, 100);
        assert!(intake.room(MILLIS * 29_000) > 900_000);
        comes(&mut intake, 29_000..61_000, 100);
        assert_eq!(intake.room(MILLIS * 61_000), 0, "after two times of half a minute at the most");
    }

    #[test]
    fn a_quiet_time_makes_nothing_last_longer() {
        let mut intake = Intake::default();
        comes(&mut intake, 0..2_000, 10_000);
        assert!(intake.room(MILLIS * 59_000) > 900_000);
        assert_eq!(intake.room(MILLIS * 60_000), 0, "the time began half a minute ago, not when somebody asked");
    }
}
