//! Who fetches: leases on ranges.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::cluster::chain::{Credential, Lease};
use crate::image::{NodeId, Registry};

use super::rates::Rates;

/// The first range, and the longest.
const FIRST: u64 = 4 << 20;
const LONGEST: u64 = 32 << 20;
/// Ranges end at a multiple of this: what is fetched, stored and checked at a time.
const CHUNK: u64 = 1 << 20;
/// This part of a small blob is much of it.
const NEAR_PART: u64 = 4;
/// Before that nobody holds up others: many blobs that begin at once share links, and the small ones are about done then.
const HOLDS_UP: Duration = Duration::from_millis(2_500);
/// How long a range may take whose holder does far worse than others did, or clearly worse, and how long any.
const SOON: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(2);
const LONGER: Duration = Duration::from_secs(6);
/// A holder that doesn't report for so long has lost its lease, as has one whose frontier stands still for so long while
/// others wait. Below the two seconds that a reader waits, so that the next has time to begin.
const SILENT: Duration = Duration::from_millis(1_000);
const STALLED: Duration = Duration::from_millis(1_200);
/// What is measured in less than this says nothing.
const TELLING_BYTES: u64 = 1 << 20;
/// Released leases count for so long.
const REMEMBERED: Duration = Duration::from_secs(2);

/// A range that one node fetches.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) lease: Lease,
    pub(super) node: NodeId,
    from: u64,
    pub(super) upto: u64,
    granted: Duration,
    pub(super) frontier: u64,
    progressed: Duration,
    heard: Duration,
    /// Bytes a second of late, as it says.
    receives: u64,
    /// Another owner let it: it goes on as long as it isn't poor.
    adopted: bool,
}

impl Held {
    const fn new(now: Duration, lease: Lease, node: NodeId, from: u64, upto: u64) -> Self {
        Self {
            lease,
            node,
            from,
            upto,
            granted: now,
            frontier: from,
            progressed: now,
            heard: now,
            receives: 0,
            adopted: false,
        }
    }

    /// Did this owner give it?
    pub(super) const fn is_own(&self) -> bool {
        !self.adopted
    }

    /// Bytes a second, of a link that is shared by so many leases: of as many as the owner has given, each gets a part.
    fn rate(&self, now: Duration, at_once: u32) -> f64 {
        let took = now.saturating_sub(self.granted).as_secs_f64().max(1e-3);
        self.frontier.saturating_sub(self.from) as f64 / took * f64::from(at_once.max(1))
    }

    /// Is the rest of the blob so little, and comes so soon, that another one's beginning would cost more? What is on its
    /// way to this one would be fetched again, too: of a small blob, a good part of it.
    fn is_nearly_done(&self, size: Option<u64>) -> bool {
        let left = size.map_or(u64::MAX, |size| size.saturating_sub(self.frontier));
        left <= CHUNK && left as f64 <= self.receives as f64 * LONG.as_secs_f64()
    }
}

/// How a range went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    GoOn(u64),
    /// `poor`: others did clearly better.
    Ended {
        poor: bool,
    },
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Vec<Held>,
    granted: u32,
    failures: u32,
    failed_at: Duration,
    absent_until: Option<Duration>,
    refused: Vec<(Credential, Duration)>,
}

impl Leases {
    pub(super) fn grant(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        node: NodeId,
        from: u64,
        size: Option<u64>,
    ) -> Held {
        let span = (FIRST << self.granted.min(3)).min(LONGEST);
        self.granted += 1;
        self.held.retain(|held| held.node != node);
        let held = Held::new(now, Lease(rng.random()), node, from, end(from, span, size));
        self.held.push(held.clone());
        held
    }

    /// A holder goes on under a lease that this owner hasn't given, since nobody else fetches here.
    pub(super) fn adopt(&mut self, now: Duration, lease: Lease, node: NodeId, frontier: u64, size: Option<u64>) -> u64 {
        let upto = end(frontier, LONGEST, size);
        self.granted += 1;
        self.held.push(Held { adopted: true, ..Held::new(now, lease, node, frontier, upto) });
        upto
    }

    /// Has one who came to this byte clearly more than every holder?
    pub(super) fn are_behind(&self, frontier: u64) -> bool {
        self.held.iter().all(|held| held.frontier.saturating_add(CHUNK) < frontier)
    }

    /// How many may be held at a time: more, the more failed of late.
    fn allowed(&self, now: Duration) -> usize {
        if self.failures > 0 && now.saturating_sub(self.failed_at) < REMEMBERED { 1 << self.failures.min(3) } else { 1 }
    }

    /// May another be given beside those that are held, to somebody who could read from others?
    pub(super) fn spare(&self, now: Duration) -> bool {
        let stands = |held: &Held| held.progressed <= held.granted;
        self.held.len() < self.allowed(now) && self.held.iter().all(stands) && !self.held.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn any(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn of(&self, node: NodeId) -> Option<&Held> {
        self.held.iter().find(|held| held.node == node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.iter()
    }

    /// Takes a lease away. `failed`: as slow or unreachable.
    pub(super) fn remove(&mut self, now: Duration, node: NodeId, failed: bool) {
        let before = self.held.len();
        self.held.retain(|held| held.node != node);
        if failed && self.held.len() < before {
            self.failures = self.failures.saturating_add(1);
            self.failed_at = now;
        }
    }

    /// One who complains is at this byte: is it who fetches that keeps it waiting? Not who began a moment ago, is nearly
    /// done, or clearly ahead, in bytes or in parts of a small blob.
    pub(super) fn hold_up(&self, now: Duration, frontier: u64, size: Option<u64>) -> bool {
        let near = size.map_or(CHUNK, |size| CHUNK.min(size / NEAR_PART));
        let holds_up = |held: &Held| {
            let began_long_ago = now.saturating_sub(held.granted) >= HOLDS_UP;
            began_long_ago && held.frontier <= frontier.saturating_add(near) && !held.is_nearly_done(size)
        };
        self.any() && self.held.iter().all(holds_up)
    }

    /// Is nothing to be gained by other holders? `others`: how many might be one.
    pub(super) fn are_good(
        &self,
        now: Duration,
        (rates, at_once): (&Rates, u32),
        registry: &Registry,
        others: usize,
    ) -> bool {
        let is_good = |held: &Held| rates.is_good(now, registry, held.rate(now, at_once), held.frontier, others);
        self.held.iter().all(is_good)
    }

    /// Notes how fast holders were so far.
    pub(super) fn measure(&self, now: Duration, rates: &mut Rates, at_once: u32, registry: &Registry) {
        for held in self.held.iter().filter(|held| held.frontier > held.from) {
            rates.measured(now, registry, held.node, held.rate(now, at_once));
        }
    }

    pub(super) fn absent(&mut self, now: Duration) {
        self.absent_until = Some(now + REMEMBERED);
    }

    pub(super) fn is_absent(&self, now: Duration) -> bool {
        self.absent_until.is_some_and(|until| now < until)
    }

    pub(super) fn refused(&mut self, now: Duration, credential: Credential) {
        self.refused.retain(|(_, until)| now < *until);
        self.refused.push((credential, now + REMEMBERED));
    }

    pub(super) fn is_refused(&self, now: Duration, credential: &Credential) -> bool {
        self.refused.iter().any(|(refused, until)| refused == credential && now < *until)
    }

    /// A holder reports. `others`: how many more might fetch.
    pub(super) fn progress(&mut self, now: Duration, report: Progress<'_>, rates: &mut Rates) -> Option<Judged> {
        let Progress { lease, node, frontier, receives, lag, size, registry, others, at_once } = report;
        let others_held = || self.held.iter().filter(|held| held.lease != lease);
        let ahead = others_held().any(|held| held.frontier > frontier);
        // What is fetched behind another one is fetched twice.
        let is_behind =
            others_held().any(|held| held.frontier > frontier.saturating_add(CHUNK) && held.progressed > held.granted);
        let held = self.held.iter_mut().find(|held| held.lease == lease && held.node == node)?;
        held.heard = now;
        held.receives = receives;
        if frontier > held.frontier {
            held.frontier = frontier;
            held.progressed = now;
        }
        let brought = held.frontier.saturating_sub(held.from);
        if brought >= TELLING_BYTES {
            self.failures = 0;
        }
        if size.is_some_and(|size| held.frontier >= size) {
            self.held.retain(|held| held.lease != lease);
            return Some(Judged::GoOn(frontier));
        }
        let (took_so_long, rate, share) = (now.saturating_sub(held.granted), held.rate(now, at_once), at_once.max(1));
        let takes_too_long = took_so_long >= LONGER * share
            || (took_so_long >= LONG && rates.is_poor(now, registry, rate))
            || (took_so_long >= SOON && rates.is_very_poor(now, registry, rate));
        let is_long = takes_too_long && !held.is_nearly_done(size);
        let at_end = held.frontier >= held.upto || is_long || is_behind;
        let at_half = brought * 2 >= held.upto.saturating_sub(held.from);
        if !at_end && !at_half {
            return Some(Judged::GoOn(held.upto));
        }
        let telling = brought >= TELLING_BYTES || (at_end && !is_behind);
        if telling {
            rates.measured(now, registry, node, rate);
        }
        // With several at it, the one that has the most goes on alone.
        // Where it ends nobody else could go on: who reads from one that does well, and is so far behind it, is slow itself,
        // and would fetch again what is between.
        let outruns = at_end && lag > CHUNK && !(is_long || is_behind);
        let stands = (held.adopted || outruns) && !rates.is_poor(now, registry, rate);
        let good = telling && !ahead && (stands || rates.is_good(now, registry, rate, held.frontier, others));
        if good || (at_end && others == 0) {
            held.from = held.frontier;
            held.granted = now;
            held.upto = end(held.frontier, LONGEST, size);
            return Some(Judged::GoOn(held.upto));
        }
        if !at_end {
            return Some(Judged::GoOn(held.upto));
        }
        let poor = rates.is_poor(now, registry, rate);
        self.held.retain(|held| held.lease != lease);
        Some(Judged::Ended { poor })
    }

    /// Who fell silent, or stands still while others wait.
    pub(super) fn overdue(&self, now: Duration, others_wait: bool) -> Vec<NodeId> {
        let is_overdue = |held: &&Held| {
            let silent = now.saturating_sub(held.heard) >= SILENT;
            silent || (others_wait && now.saturating_sub(held.progressed) >= STALLED)
        };
        self.held.iter().filter(is_overdue).map(|held| held.node).collect()
    }
}

/// What a holder says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress<'a> {
    pub(super) lease: Lease,
    pub(super) node: NodeId,
    pub(super) frontier: u64,
    pub(super) receives: u64,
    pub(super) lag: u64,
    pub(super) size: Option<u64>,
    pub(super) registry: &'a Registry,
    pub(super) others: usize,
    /// The leases that this owner has given at present, on whatever.
    pub(super) at_once: u32,
}

/// Where a range ends: with a chunk, of which what is left would be fetched twice, and not shortly before the blob does.
fn end(from: u64, span: u64, size: Option<u64>) -> u64 {
    let upto = from.saturating_add(span) / CHUNK * CHUNK;
    match size {
        Some(size) if upto.saturating_add(span / 4) >= size => size,
        _ => upto,
    }
}
