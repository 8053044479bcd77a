use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row, each of which may be chance, that together are none.
const STRIKES: u32 = 3;
/// How long an upstream is left alone when it fails for the first time; twice as long each time that it fails again
/// before it answered a request.
const HOLD: Duration = Duration::from_secs(1);
const HOLD_MAX: Duration = Duration::from_secs(60);
/// Between probes while somebody asks; up to the longest while nobody does.
const PROBES_APART: Duration = Duration::from_secs(1);
const PROBES_APART_MAX: Duration = Duration::from_secs(60);
/// An upstream that says nothing for so long, while another answers, is down.
pub(super) const SILENCE: Duration = Duration::from_millis(1500);

/// Whether an upstream is worth asking before others: a state machine without clock, chance and sockets.
///
/// It keeps nobody from asking: it says in which order to ask, and when to probe.
#[derive(Debug)]
pub(super) struct Breaker {
    standing: Standing,
    /// Requests that failed in a row in a way that may be chance.
    strikes: u32,
    /// The same for bodies, which answers say nothing about.
    broken_bodies: u32,
    /// Races in a row that another upstream won.
    lost: u32,
    /// How often it opened since a request succeeded. A probe isn't a request: it may pass where requests fail.
    opened: u32,
    rest_until: Option<Instant>,
    /// When somebody last wanted it.
    wanted: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Closed, as electricians say it.
    Well,
    /// It lost a race in silence. A probe is about to tell.
    Doubted,
    /// Open.
    Down { not_before: Instant, next_probe: Instant },
}

/// In which order upstreams are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Well,
    Down,
    /// It asked to be left alone.
    Resting,
}

/// How much a failure says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It can't be reached: one is enough.
    Grave,
    /// It may be chance.
    Light,
    /// A body that broke off or stood still.
    Body,
}

/// What happened to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Opened,
    Closed,
    /// It is to be probed, now.
    Doubted,
}

impl Breaker {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            standing: Standing::Well,
            strikes: 0,
            broken_bodies: 0,
            lost: 0,
            opened: 0,
            rest_until: None,
            wanted: now,
        }
    }

    pub(super) fn rank(&self, now: Instant) -> Rank {
        match self.standing {
            _ if self.rest_until.is_some_and(|until| now < until) => Rank::Resting,
            Standing::Well => Rank::Well,
            Standing::Doubted | Standing::Down { .. } => Rank::Down,
        }
    }

    pub(super) fn failed(&mut self, failure: Failure, now: Instant) -> Option<Change> {
        let opens = match failure {
            Failure::Grave => true,
            Failure::Light => {
                self.strikes = self.strikes.saturating_add(1);
                self.strikes >= STRIKES
            }
            Failure::Body => {
                self.broken_bodies = self.broken_bodies.saturating_add(1);
                self.broken_bodies >= STRIKES
            }
        };
        if opens { self.open(now) } else { None }
    }

    /// A request was answered, with the content or with no.
    pub(super) fn answered(&mut self) -> Option<Change> {
        self.strikes = 0;
        self.lost = 0;
        if self.broken_bodies >= STRIKES {
            return None;
        }
        self.opened = 0;
        self.close()
    }

    /// A body arrived whole.
    pub(super) fn delivered(&mut self) -> Option<Change> {
        self.broken_bodies = 0;
        self.answered()
    }

    /// Another upstream answered, while this one had said nothing for so long.
    pub(super) fn lost(&mut self, silence: Duration, now: Instant) -> Option<Change> {
        if self.standing != Standing::Well {
            return None;
        }
        self.lost += 1;
        if silence >= SILENCE || self.lost >= STRIKES {
            return self.open(now);
        }
        self.standing = Standing::Doubted;
        Some(Change::Doubted)
    }

    /// Too many requests, it said.
    pub(super) fn rest(&mut self, until: Instant) {
        self.rest_until = self.rest_until.max(Some(until));
    }

    /// When it is to be probed; `None` while it is well.
    pub(super) const fn probe_at(&self, now: Instant) -> Option<Instant> {
        match self.standing {
            Standing::Well => None,
            Standing::Doubted => Some(now),
            Standing::Down { next_probe, .. } => Some(next_probe),
        }
    }

    pub(super) fn probed(&mut self, alive: bool, now: Instant) -> Option<Change> {
        match &mut self.standing {
            Standing::Well => None,
            _ if alive => self.close(),
            Standing::Doubted => self.open(now),
            Standing::Down { next_probe, .. } => {
                let idle = now.saturating_duration_since(self.wanted);
                *next_probe = now + (idle / 10).clamp(PROBES_APART, PROBES_APART_MAX);
                None
            }
        }
    }

    /// Somebody would ask it. True if the next probe now comes earlier.
    pub(super) fn want(&mut self, now: Instant) -> bool {
        self.wanted = now;
        let Standing::Down { not_before, next_probe } = &mut self.standing else { return false };
        let soon = (now + PROBES_APART).max(*not_before);
        let earlier = soon < *next_probe;
        *next_probe = soon.min(*next_probe);
        earlier
    }

    fn open(&mut self, now: Instant) -> Option<Change> {
        if matches!(self.standing, Standing::Down { .. }) {
            return None;
        }
        let hold = HOLD.saturating_mul(1 << self.opened.min(10)).min(HOLD_MAX);
        self.opened = self.opened.saturating_add(1);
        self.standing = Standing::Down { not_before: now + hold, next_probe: now + hold };
        Some(Change::Opened)
    }

    fn close(&mut self) -> Option<Change> {
        let was = std::mem::replace(&mut self.standing, Standing::Well);
        matches!(was, Standing::Down { .. }).then_some(Change::Closed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        let now = Instant::now();
        (Breaker::new(now), now)
    }

    #[test]
    fn one_grave_failure_or_three_light_ones() {
        let (mut breaker, now) = breaker();
        assert_eq!(breaker.rank(now), Rank::Well);
        assert_eq!(breaker.failed(Failure::Light, now), None);
        assert_eq!(breaker.failed(Failure::Light, now), None);
        assert_eq!(breaker.answered(), None);
        assert_eq!(breaker.failed(Failure::Light, now), None, "only in a row");
        assert_eq!(breaker.failed(Failure::Light, now), None);
        assert_eq!(breaker.failed(Failure::Light, now), Some(Change::Opened));
        assert_eq!(breaker.rank(now), Rank::Down);
        assert_eq!(breaker.failed(Failure::Grave, now), None, "it is open already");
        assert_eq!(breaker.answered(), Some(Change::Closed));
        assert_eq!(breaker.failed(Failure::Grave, now), Some(Change::Opened));
    }

    #[test]
    fn answers_say_nothing_about_bodies() {
        let (mut breaker, now) = breaker();
        for expected in [None, None, Some(Change::Opened)] {
            assert_eq!(breaker.answered(), None);
            assert_eq!(breaker.failed(Failure::Body, now), expected);
        }
        assert_eq!(breaker.answered(), None);
        assert_eq!(breaker.rank(now), Rank::Down);
        assert_eq!(breaker.delivered(), Some(Change::Closed));
    }

    #[test]
    fn a_probe_closes_and_each_opening_without_an_answer_holds_longer() {
        let (mut breaker, mut now) = breaker();
        for hold in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(breaker.failed(Failure::Grave, now), Some(Change::Opened));
            assert_eq!(breaker.probe_at(now), Some(now + hold * SECOND));
            now += hold * SECOND;
            assert_eq!(breaker.probed(false, now), None);
            assert!(breaker.probe_at(now) > Some(now));
            assert_eq!(breaker.probed(true, now), Some(Change::Closed));
            assert_eq!(breaker.probe_at(now), None);
        }
        breaker.answered();
        breaker.failed(Failure::Grave, now);
        assert_eq!(breaker.probe_at(now), Some(now + SECOND));
    }

    #[test]
    fn probes_are_rarer_while_nobody_asks() {
        let (mut breaker, start) = breaker();
        breaker.failed(Failure::Grave, start);
        for (idle, apart) in [(2, 1), (30, 3), (3600, 60)] {
            let now = start + idle * SECOND;
            breaker.probed(false, now);
            assert_eq!(breaker.probe_at(now), Some(now + apart * SECOND));
        }
        let now = start + 3600 * SECOND;
        assert!(breaker.want(now));
        assert_eq!(breaker.probe_at(now), Some(now + SECOND));
        assert!(!breaker.want(now), "once is enough");
    }

    #[test]
    fn a_race_lost_in_silence_is_a_doubt_first() {
        let (mut breaker, now) = breaker();
        let short = Duration::from_millis(300);
        for _ in 0..2 {
            assert_eq!(breaker.lost(short, now), Some(Change::Doubted));
            assert_eq!(breaker.rank(now), Rank::Down);
            assert_eq!(breaker.lost(short, now), None, "one doubt for all who race at the same time");
            assert_eq!(breaker.probe_at(now), Some(now));
            assert_eq!(breaker.probed(true, now), None, "no change that anybody needs to hear of");
            assert_eq!(breaker.rank(now), Rank::Well);
        }
        assert_eq!(breaker.lost(short, now), Some(Change::Opened), "the third time in a row");
        breaker.answered();
        breaker.lost(short, now);
        assert_eq!(breaker.probed(false, now), Some(Change::Opened));
        breaker.answered();
        assert_eq!(breaker.lost(SILENCE, now), Some(Change::Opened));
    }

    #[test]
    fn rest_comes_before_all() {
        let (mut breaker, now) = breaker();
        breaker.rest(now + 30 * SECOND);
        breaker.rest(now + SECOND);
        assert_eq!(breaker.rank(now + 29 * SECOND), Rank::Resting, "the longer one holds");
        breaker.answered();
        assert_eq!(breaker.rank(now), Rank::Resting, "other requests may still be answered");
        assert_eq!(breaker.rank(now + 30 * SECOND), Rank::Well);
        assert!(Rank::Well < Rank::Down && Rank::Down < Rank::Resting);
    }

    proptest! {
        #[test]
        fn what_is_not_well_is_always_probed_within_a_minute(events in prop::collection::vec((0..8u8, 0..5000u64), 0..200)) {
            let (mut breaker, mut now) = breaker();
            let mut open = false;
            for (event, millis) in events {
                now += Duration::from_millis(millis);
                let change = match event {
                    0 => breaker.failed(Failure::Grave, now),
                    1 => breaker.failed(Failure::Light, now),
                    2 => breaker.failed(Failure::Body, now),
                    3 => breaker.answered(),
                    4 => breaker.delivered(),
                    5 => breaker.lost(Duration::from_millis(millis), now),
                    6 => breaker.probed(millis % 2 == 0, now),
                    _ => { breaker.want(now); None }
                };
                match change {
                    Some(Change::Opened) => { prop_assert!(!open); open = true }
                    Some(Change::Closed) => { prop_assert!(open); open = false }
                    _ => {}
                }
                match breaker.probe_at(now) {
                    None => prop_assert_eq!(breaker.rank(now), Rank::Well),
                    Some(at) => {
                        prop_assert_eq!(breaker.rank(now), Rank::Down);
                        prop_assert!(at <= now + HOLD_MAX);
                    }
                }
            }
        }
    }
}
