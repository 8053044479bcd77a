//! How many connections one blob deserves, by what they bring.
//!
//! Some registries and proxies limit each connection; most don't, and there a second connection gains nothing and costs
//! both sides. So it is tried: twice as many, for a moment; if they bring a good deal more they stay, and twice as many
//! again are tried.

use std::time::{Duration, Instant};

/// What is measured at a time. Shorter than this says more about buffers than about rates.
const WINDOW: Duration = Duration::from_millis(300);
/// How long new connections may take to show a gain: over long distances each needs a second to come up to speed.
const TRIAL: Duration = Duration::from_millis(1200);
/// After a trial without gain.
const REST: Duration = Duration::from_secs(10);
/// The gain that makes twice as many connections worth their cost: a fifth more.
const GAIN: f64 = 1.2;
/// The same where others read along what comes next. Two connections that share a link each bring their part later, and
/// take more of that link from whoever else uses it, which looks like a gain.
const GAIN_FOR_OTHERS: f64 = 1.6;
/// Below so much that is left, in bytes, all is over before more connections could gain much.
const WORTHWHILE: u64 = 16 << 20;
/// The same in time, at the rate measured.
const LEFT: f64 = 1.0;
/// Faster than this, in bytes a second, it is this machine or its link that limits, not the upstream.
const FAST: f64 = (256 << 20) as f64;

/// Decides on the number of connections of one transfer.
#[derive(Debug)]
pub(super) struct Gauge {
    width: usize,
    /// Where the present window began.
    mark: (Instant, u64),
    trial: Option<Trial>,
    /// Before this, nothing is tried.
    rest_until: Option<Instant>,
}

/// More connections than there were, to see what they gain.
#[derive(Debug)]
struct Trial {
    from: usize,
    rate: f64,
    since: Instant,
}

/// What a gauge is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) now: Instant,
    /// Bytes that have come so far.
    pub(super) bytes: u64,
    /// Bytes that are left from the frontier on.
    pub(super) left: u64,
    /// Connections at work. More than there should be while readers far ahead are served: then nothing is measured.
    pub(super) workers: usize,
    /// Whether more bytes would be of use now: readers keep up with what comes.
    pub(super) in_demand: bool,
    /// The most connections there may be.
    pub(super) limit: usize,
    /// Whether others read along.
    pub(super) for_others: bool,
}

impl Gauge {
    pub(super) const fn new(now: Instant) -> Self {
        Self { width: 1, mark: (now, 0), trial: None, rest_until: None }
    }

    /// What came until now, in bytes, came from elsewhere: it is no measure of what is asked from here on.
    pub(super) fn begin_anew(&mut self, now: Instant, bytes: u64) {
        *self = Self { mark: (now, bytes), ..Self::new(now) };
    }

    /// How many connections there should be.
    pub(super) const fn width(&self) -> usize {
        self.width
    }

    /// Takes in how things stand; a few times a second. Returns whether there should be another number of connections.
    pub(super) fn measure(&mut self, reading: Reading) -> bool {
        let Reading { now, bytes, limit, .. } = reading;
        if reading.workers != self.width {
            self.mark = (now, bytes);
        }
        let elapsed = now.saturating_duration_since(self.mark.0);
        if elapsed < WINDOW {
            return false;
        }
        let rate = bytes.saturating_sub(self.mark.1) as f64 / elapsed.as_secs_f64();
        self.mark = (now, bytes);
        let before = self.width;
        let gain = if reading.for_others { GAIN_FOR_OTHERS } else { GAIN };
        match &self.trial {
            Some(trial) if rate < trial.rate * gain => {
                if now.saturating_duration_since(trial.since) >= TRIAL {
                    self.width = trial.from;
                    self.rest(now);
                }
            }
            _ => {
                self.trial = None;
                if self.may_try(rate, reading) {
                    self.trial = Some(Trial { from: self.width, rate, since: now });
                    self.width *= 2;
                }
            }
        }
        self.width = self.width.min(limit.max(1));
        self.width != before
    }

    /// The upstream wants no more connections than `open`.
    pub(super) fn refused(&mut self, now: Instant, open: usize) {
        self.width = self.width.min(open.max(1));
        self.rest(now);
    }

    fn rest(&mut self, now: Instant) {
        self.trial = None;
        self.rest_until = Some(now + REST);
    }

    fn may_try(&self, rate: f64, Reading { now, left, in_demand, limit, .. }: Reading) -> bool {
        self.width < limit
            && in_demand
            && self.rest_until.is_none_or(|until| now >= until)
            && left >= WORTHWHILE
            && rate > 0.0
            && rate < FAST
            && left as f64 / rate > LEFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(now: Instant) -> Reading {
        Reading { now, bytes: 6 * MIB, left: 600 * MIB, workers: 1, in_demand: true, limit: 8, for_others: false }
    }

    /// Runs a gauge for some seconds against an upstream; the widths that it went through.
    fn widths(seconds: u64, limit: usize, in_demand: bool, rate: impl Fn(usize) -> u64) -> Vec<usize> {
        let start = Instant::now();
        let mut gauge = Gauge::new(start);
        let (mut bytes, mut widths) = (0, vec![1]);
        for tick in 1..=seconds * 10 {
            bytes += rate(gauge.width()) / 10;
            let now = start + Duration::from_millis(tick * 100);
            let reading = Reading { workers: gauge.width(), bytes, left: 10_000 * MIB, in_demand, limit, ..at(now) };
            if gauge.measure(reading) {
                widths.push(gauge.width());
            }
        }
        widths
    }

    #[test]
    fn where_each_connection_is_limited_it_takes_as_many_as_it_may() {
        assert_eq!(widths(60, 8, true, |width| width as u64 * 20 * MIB), [1, 2, 4, 8]);
        assert_eq!(widths(60, 3, true, |width| width as u64 * 20 * MIB), [1, 2, 3]);
        assert_eq!(widths(60, 1, true, |width| width as u64 * 20 * MIB), [1]);
    }

    #[test]
    fn it_goes_back_to_where_the_last_gain_was() {
        // The link has 50 MiB/s, each connection 20.
        assert_eq!(widths(5, 8, true, |width| (width as u64 * 20 * MIB).min(50 * MIB)), [1, 2, 4, 8, 4]);
        assert_eq!(widths(5, 8, true, |_| 50 * MIB), [1, 2, 1]);
    }

    #[test]
    fn without_gain_it_tries_seldom() {
        assert_eq!(widths(31, 8, true, |_| 50 * MIB), [1, 2, 1, 2, 1, 2, 1]);
    }

    #[test]
    fn nothing_is_tried_where_nothing_can_be_gained() {
        assert_eq!(widths(30, 8, false, |width| width as u64 * 20 * MIB), [1], "the readers are slower");
        assert_eq!(widths(30, 8, true, |_| 600 * MIB), [1], "the machine is the limit");
        assert_eq!(widths(30, 8, true, |_| 0), [1]);
    }

    #[test]
    fn little_that_is_left_is_not_worth_it() {
        let start = Instant::now();
        let mut gauge = Gauge::new(start);
        let now = start + WINDOW;
        let reading = Reading { left: 15 * MIB, ..at(now) };
        assert!(!gauge.measure(reading));
        assert!(gauge.measure(Reading { now: start + 2 * WINDOW, bytes: 12 * MIB, left: 60 * MIB, ..reading }));
    }

    #[test]
    fn those_who_serve_readers_far_ahead_are_not_measured() {
        let start = Instant::now();
        let mut gauge = Gauge::new(start);
        let now = start + WINDOW;
        let reading = Reading { bytes: 18 * MIB, workers: 3, ..at(now) };
        assert!(!gauge.measure(reading));
        assert!(gauge.measure(Reading { now: now + WINDOW, bytes: 24 * MIB, workers: 1, ..reading }));
        assert!(gauge.measure(Reading { now: now + 2 * WINDOW, bytes: 36 * MIB, workers: 2, ..reading }));
        assert_eq!(gauge.width(), 4);
    }

    #[test]
    fn an_upstream_that_refuses_is_left_in_peace_for_a_while() {
        let start = Instant::now();
        let mut gauge = Gauge::new(start);
        let now = start + WINDOW;
        let reading = at(now);
        assert!(gauge.measure(reading));
        gauge.refused(reading.now, 1);
        assert_eq!(gauge.width(), 1);
        assert!(!gauge.measure(Reading { now: start + 3 * WINDOW, bytes: 12 * MIB, ..reading }));
    }

    #[test]
    fn where_others_read_along_a_larger_part_of_a_shared_link_is_no_gain() {
        let widths = |for_others| {
            let start = Instant::now();
            let mut gauge = Gauge::new(start);
            let (mut bytes, mut widths) = (0, vec![1]);
            for tick in 1..=30 {
                // One more connection is on the link, of somebody else.
                bytes += 50 * MIB * gauge.width() as u64 / (gauge.width() as u64 + 1) / 10;
                let now = start + Duration::from_millis(tick * 100);
                let reading = Reading { bytes, workers: gauge.width(), limit: 2, for_others, ..at(now) };
                if gauge.measure(reading) {
                    widths.push(gauge.width());
                }
            }
            widths
        };
        assert_eq!(widths(true), [1, 2, 1]);
        assert_eq!(widths(false), [1, 2]);
    }
}
