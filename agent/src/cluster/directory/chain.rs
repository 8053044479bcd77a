//! One chain: who reads in it, and who fetches for it.

use std::time::Duration;

use rand::Rng;

use crate::cluster::chain::{Ailment, Ticket, Trouble};
use crate::image::{NodeId, Zone};

use super::lease::{Held, Judged, Leases, Progress};
use super::members::{Newcomer, Readers};
use super::place::{MAX_PARENTS, Placing, fan_out};
use super::rates::Rates;
use super::words::{Answer, Ask, Released, Report, Verdict};

/// Whom upstream failed isn't asked to fetch again for so long.
const RESTS: Duration = Duration::from_secs(2);
/// A chain without readers is remembered for so long, for its count of tickets and what was found absent.
const LINGERS: Duration = Duration::from_secs(60);

/// Who is so far behind the one who fetches, in bytes, that who stands between them may be slow; and how long a complaint
/// counts.
const LAG: u64 = 2 << 20;
const COMPLAINT: Duration = Duration::from_secs(3);

/// What the owner knows besides.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// Who has all of it, and in which zones.
    pub(super) holders: &'a [(NodeId, &'a Zone)],
    pub(super) rates: &'a mut Rates,
    /// The leases that it has given at present, on whatever.
    pub(super) at_once: u32,
}

#[derive(Debug)]
pub(super) struct Chain {
    pub(super) readers: Readers,
    pub(super) leases: Leases,
    size: Option<u64>,
    has_yielded: bool,
    pub(super) touched: Duration,
}

impl Chain {
    /// `leap`: another owner may have given out tickets.
    pub(super) fn new(now: Duration, leap: bool) -> Self {
        Self { readers: Readers::new(leap), leases: Leases::default(), size: None, has_yielded: false, touched: now }
    }

    pub(super) fn ask(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        run: u64,
        from: NodeId,
        ask: &Ask,
        known: &mut Known<'_>,
    ) -> Answer {
        // Who can't be read from is none for this asker: it would be left without a lease, and fetch for itself alone.
        let is_lost = |trouble: &Trouble| matches!(trouble.why, Ailment::Silent | Ailment::Absent | Ailment::Wrong);
        let is_lost = |node: NodeId| ask.troubles.iter().any(|trouble| trouble.node == node && is_lost(trouble));
        let mut holders: Vec<_> = known.holders.iter().copied().filter(|(node, _)| !is_lost(*node)).collect();
        // Who reads from one stays: a slow link of its own would have it go from one to the next, and get nothing.
        let parent = self.readers.of(from).and_then(|reader| reader.parent);
        holders.sort_by_key(|(node, _)| Some(*node) != parent);
        let holders = holders.as_slice();
        self.touched = now;
        self.size = ask.size.or(self.size);
        for trouble in &ask.troubles {
            if matches!(trouble.why, Ailment::Silent | Ailment::Wrong) && trouble.node != from {
                self.lose(now, trouble.node);
            }
        }
        if ask.to_the_tail {
            self.leases.remove(now, from, false);
        }
        let Some(ticket) = self.enter(now, run, from, (ask, holders), ask.to_the_tail) else {
            return Answer::Alone { absent: false };
        };
        if let Some(held) = self.leases.of(from) {
            return Answer::Fetch { ticket, lease: held.lease, upto: held.upto };
        }
        if holders.is_empty() && self.leases.is_absent(now) {
            self.readers.remove(from);
            return Answer::Alone { absent: true };
        }
        let complains = ask.troubles.iter().any(|trouble| trouble.why == Ailment::Slow);
        if let Some(reader) = self.readers.of_mut(from).filter(|_| complains) {
            reader.complained = Some((now, ask.frontier));
        }
        if holders.is_empty() && !complains && self.leases.spare(now) && self.may_fetch(now, from, ask) {
            return self.fetch(now, rng, from, ticket, ask);
        }
        if holders.is_empty() && complains && self.is_held_up(now, from, ask, known) && self.may_fetch(now, from, ask) {
            self.leases.measure(now, known.rates, known.at_once, &ask.key.registry);
            self.end_leases(now);
            return self.fetch(now, rng, from, ticket, ask);
        }
        let mut parents = self.placing(from, ask).parents(&self.readers, ticket, holders);
        if let Some(passed) = self.passed_over(now, from, ask).filter(|_| complains && parents.len() > 1) {
            parents.retain(|node| *node != passed);
            if let Some(reader) = self.readers.of_mut(from) {
                reader.complained = None;
            }
        }
        if !parents.is_empty() {
            return self.read(now, from, ticket, parents);
        }
        let is_lowest = self.readers.below(ticket).all(|lower| ask.troubles.iter().any(|t| t.node == lower.node));
        if holders.is_empty() && is_lowest && !self.leases.any() {
            if self.may_fetch(now, from, ask) {
                return self.fetch(now, rng, from, ticket, ask);
            }
            if self.readers.len() == 1 {
                return Answer::Alone { absent: false };
            }
        }
        // Who has a lower ticket is no use: is there anybody at the tail?
        let Some(ticket) = self.enter(now, run, from, (ask, holders), true) else {
            return Answer::Alone { absent: false };
        };
        let mut parents = self.placing(from, ask).parents(&self.readers, ticket, holders);
        if parents.is_empty() {
            // It was full a moment ago: who comes again takes one more.
            parents.extend(holders.iter().map(|(node, _)| *node).filter(|node| *node != from).take(MAX_PARENTS));
        }
        if parents.is_empty() { Answer::Alone { absent: false } } else { self.read(now, from, ticket, parents) }
    }

    /// The asker's place: the one that it has, or a new one.
    fn enter(
        &mut self,
        now: Duration,
        run: u64,
        from: NodeId,
        (ask, holders): (&Ask, &[(NodeId, &Zone)]),
        to_the_tail: bool,
    ) -> Option<Ticket> {
        let newcomer = Newcomer { node: from, zone: &ask.zone, ticket: ask.ticket, to_the_tail };
        let ticket = self.readers.enter(now, run, newcomer)?;
        if let Some(reader) = self.readers.of_mut(from) {
            reader.slow |= ask.slow;
        }
        if Some(ticket) == ask.ticket {
            return Some(ticket);
        }
        let between = self.placing(from, ask).between(&self.readers, holders);
        let squeezed = between.and_then(|(low, high)| self.readers.squeeze_in(run, from, low, high));
        Some(squeezed.unwrap_or(ticket))
    }

    fn placing<'a>(&self, from: NodeId, ask: &'a Ask) -> Placing<'a> {
        Placing {
            me: from,
            zone: &ask.zone,
            slow: self.readers.of(from).is_some_and(|reader| reader.slow),
            troubles: &ask.troubles,
            fan_out: fan_out(self.size),
        }
    }

    fn read(&mut self, now: Duration, from: NodeId, ticket: Ticket, parents: Vec<NodeId>) -> Answer {
        self.readers.attach(now, from, parents.first().copied());
        // At most as many as there are places.
        let ahead = u32::try_from(self.readers.len().saturating_sub(1)).unwrap_or(u32::MAX);
        Answer::Read { ticket, parents, ahead }
    }

    fn fetch(&mut self, now: Duration, rng: &mut impl Rng, from: NodeId, ticket: Ticket, ask: &Ask) -> Answer {
        self.readers.attach(now, from, None);
        let held = self.leases.grant(now, rng, from, ask.frontier, self.size);
        Answer::Fetch { ticket, lease: held.lease, upto: held.upto }
    }

    /// Is it who fetches that keeps one waiting who complains? Who reads from it finds out, by fetching in its place, unless
    /// it is known to do well.
    fn is_held_up(&self, now: Duration, from: NodeId, ask: &Ask, known: &Known<'_>) -> bool {
        let parent = self.readers.of(from).and_then(|reader| reader.parent);
        let reads_from_it =
            parent.is_none_or(|parent| self.leases.of(parent).is_some() || self.readers.of(parent).is_none());
        let others = self.readers.len().saturating_sub(1);
        reads_from_it
            && self.leases.hold_up(now, ask.frontier, self.size)
            && !self.leases.are_good(now, (&*known.rates, known.at_once), &ask.key.registry, others)
    }

    /// Of those who complain in a row, the first one or its sender is slow: the second tries in the place of the first. The
    /// others wait for that.
    fn passed_over(&self, now: Duration, from: NodeId, ask: &Ask) -> Option<NodeId> {
        let front = self.leases.iter().map(|held| held.frontier).max()?;
        let lags = |frontier: u64| frontier.saturating_add(LAG) <= front;
        let complains = |node: NodeId| {
            let complained = self.readers.of(node).and_then(|reader| reader.complained);
            complained.is_some_and(|(at, frontier)| now.saturating_sub(at) < COMPLAINT && lags(frontier))
        };
        let parent = self.readers.of(from)?.parent.filter(|parent| lags(ask.frontier) && complains(*parent))?;
        let beyond = self.readers.of(parent)?.parent;
        (!beyond.is_some_and(complains)).then_some(parent)
    }

    /// Who fetches is told so when it reports next, and goes to the tail.
    fn end_leases(&mut self, now: Duration) {
        let holders: Vec<NodeId> = self.leases.iter().map(|held| held.node).collect();
        for node in holders {
            self.leases.remove(now, node, false);
            if let Some(reader) = self.readers.of_mut(node) {
                reader.leaving = true;
                reader.slow = true;
            }
        }
    }

    fn may_fetch(&self, now: Duration, from: NodeId, ask: &Ask) -> bool {
        let rests = self.readers.of(from).and_then(|reader| reader.failed);
        rests.is_none_or(|failed| now.saturating_sub(failed) >= RESTS) && !self.leases.is_refused(now, &ask.credential)
    }

    /// A holder reports.
    pub(super) fn fetching(
        &mut self,
        now: Duration,
        run: u64,
        from: NodeId,
        report: &Report,
        rates: &mut Rates,
        at_once: u32,
    ) -> Verdict {
        let Some(lease) = report.lease else { return Verdict::Noted };
        self.touched = now;
        self.size = report.size.or(self.size);
        let progress = Progress {
            lease,
            node: from,
            frontier: report.frontier,
            receives: report.rate,
            lag: report.lag,
            size: self.size,
            registry: &report.key.registry,
            others: self.readers.len().saturating_sub(1),
            at_once,
        };
        match self.leases.progress(now, progress, rates) {
            Some(Judged::GoOn(upto)) => {
                // One that does well asks for nothing, however long it fetches.
                self.readers.heard_of(now, from);
                Verdict::GoOn { upto }
            }
            Some(Judged::Ended { poor }) => {
                if let Some(reader) = self.readers.of_mut(from) {
                    reader.leaving = true;
                    reader.slow |= poor;
                }
                Verdict::Ended
            }
            None if report.ticket.is_none() || !self.leases.are_behind(report.frontier) => Verdict::Ended,
            None => {
                self.reading(now, run, from, report);
                Verdict::GoOn { upto: self.leases.adopt(now, lease, from, report.frontier, self.size) }
            }
        }
    }

    /// One reports whom this owner let fetch in the first one's place, which was late: is its range over since others stand
    /// before it, as the first one let them, and read already? Once: who is let fetch again after that found none of them
    /// there.
    pub(super) fn yields_to_first(&mut self, now: Duration, from: NodeId) -> bool {
        if self.has_yielded {
            return false;
        }
        let Some(ticket) = self.readers.ticket(from).filter(|_| self.leases.of(from).is_some_and(Held::is_own)) else {
            return false;
        };
        let reads_elsewhere = |parent: NodeId| parent != from;
        if !self.readers.below(ticket).any(|reader| reader.parent.is_some_and(reads_elsewhere)) {
            return false;
        }
        self.has_yielded = true;
        self.leases.remove(now, from, false);
        if let Some(reader) = self.readers.of_mut(from) {
            reader.leaving = true;
        }
        true
    }

    /// A reader says whom it reads from, and by that that it is here. It has no use for a lease.
    pub(super) fn reading(&mut self, now: Duration, run: u64, from: NodeId, report: &Report) {
        self.touched = now;
        self.leases.remove(now, from, false);
        self.size = report.size.or(self.size);
        let newcomer = Newcomer { node: from, zone: &report.zone, ticket: report.ticket, to_the_tail: false };
        // Without a ticket there is no place in the chain to speak of.
        if report.ticket.is_some() && self.readers.enter(now, run, newcomer).is_some() {
            self.readers.attach(now, from, report.parent);
        }
    }

    pub(super) fn released(&mut self, now: Duration, from: NodeId, report: &Report, why: Released) {
        self.touched = now;
        self.leases.remove(now, from, matches!(why, Released::Unreachable | Released::Slow));
        match why {
            Released::Absent => self.leases.absent(now),
            Released::Unauthorized => self.leases.refused(now, report.credential),
            Released::Unreachable | Released::Slow => {}
        }
        if let Some(reader) = self.readers.of_mut(from) {
            reader.failed = Some(now);
            reader.leaving = true;
        }
    }

    /// A reader has all of it, or has left.
    pub(super) fn leaves(&mut self, now: Duration, node: NodeId) {
        self.readers.remove(node);
        self.leases.remove(now, node, false);
    }

    /// A reader fell silent.
    pub(super) fn lose(&mut self, now: Duration, node: NodeId) {
        self.readers.remove(node);
        self.readers.lose_children(node);
        self.leases.remove(now, node, true);
    }

    pub(super) fn tick(&mut self, now: Duration) {
        let others_wait = self.readers.len() > 1;
        for node in self.leases.overdue(now, others_wait) {
            self.leases.remove(now, node, true);
            if let Some(reader) = self.readers.of_mut(node) {
                reader.leaving = true;
            }
        }
    }

    /// Drops who wasn't heard of for long. True: nothing is left to know.
    pub(super) fn sweep(&mut self, now: Duration) -> bool {
        self.readers.sweep(now);
        self.readers.len() == 0 && now.saturating_sub(self.touched) > LINGERS
    }
}
