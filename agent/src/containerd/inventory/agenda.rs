//! What is to be asked of containerd next, and when: a state machine to which time is given.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::containerd::client::{Event, Happening};

/// Events that follow each other within this time are answered as one.
const QUIET: Duration = Duration::from_millis(200);
/// But the first of them isn't left longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// The garbage collector removes content some time after images, and tells nobody. So much later content is looked at again.
const COLLECTED: Duration = Duration::from_secs(5);
/// All is asked anew so often, a tenth more or less.
const ALL: Duration = Duration::from_secs(300);
/// A listing is followed by a pause of so many times what it took: a busy node has other work than to answer us.
const REST: u32 = 10;
/// At most.
const MOST_REST: Duration = Duration::from_secs(30);
/// So many tasks' changes are remembered one by one; beyond, all tasks are listed.
const MOST_TASKS: usize = 4096;

/// What a listing is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) images: bool,
    pub(super) containers: bool,
    pub(super) tasks: bool,
    pub(super) contents: bool,
}

/// Whether a container runs now, by namespace and id.
pub(super) type Tasks = HashMap<(Arc<str>, String), bool>;

#[derive(Debug)]
pub(super) struct Agenda {
    /// What events have called for.
    parts: Parts,
    /// What events have said of tasks.
    tasks: Tasks,
    /// The first and the last of these events.
    since: Option<(Instant, Instant)>,
    /// Content may be gone by then.
    collected: Option<Instant>,
    all: Instant,
    /// Nothing is asked before; no contents before the second.
    rested: Instant,
    contents_rested: Instant,
}

impl Parts {
    pub(super) const ALL: Self = Self { images: true, containers: true, tasks: true, contents: true };

    pub(super) fn is_all(self) -> bool {
        self == Self::ALL
    }
}

impl Agenda {
    /// With everything to be asked at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            parts: Parts::default(),
            tasks: Tasks::new(),
            since: None,
            collected: None,
            all: now,
            rested: now,
            contents_rested: now,
        }
    }

    /// Something happened.
    pub(super) fn note(&mut self, event: Event, now: Instant) {
        match event.what {
            Happening::Image => {
                // Together: an image whose layers aren't known yet would seem to have none.
                (self.parts.images, self.parts.contents) = (true, true);
                self.collected = Some(now + COLLECTED);
            }
            Happening::Container => self.parts.containers = true,
            Happening::Started(id) => self.task(event.namespace, id, true),
            Happening::Ended(id) => self.task(event.namespace, id, false),
            // Blobs come and go by the hundred; nobody needs to know of them at once.
            Happening::Content => {
                self.collected = Some(self.collected.unwrap_or(now + COLLECTED));
                return;
            }
            Happening::Namespace => {
                self.parts = Parts::ALL;
                self.collected = Some(now + COLLECTED);
            }
        }
        self.since = Some((self.since.map_or(now, |(first, _)| first), now));
    }

    /// Has what was asked first asked once more: what happened between a subscription and its taking effect came without an
    /// event.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.parts = Parts { contents: false, ..Parts::ALL };
        self.since = Some((now, now));
    }

    /// When there is something to do.
    pub(super) fn due(&self) -> Instant {
        [self.quick(), self.contents()].into_iter().flatten().fold(self.all, Instant::min)
    }

    /// Takes what is due, and what is known of tasks.
    pub(super) fn take(&mut self, now: Instant) -> (Parts, Tasks) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let (quick, collected) = (is_due(self.quick()), is_due(self.contents()));
        let mut parts = Parts::default();
        if self.all <= now {
            self.all = now + ALL.mul_f64(rand::random_range(0.9..1.1));
            parts = Parts::ALL;
        }
        if quick || parts.is_all() {
            let asked = std::mem::take(&mut self.parts);
            parts.images |= asked.images;
            parts.containers |= asked.containers;
            parts.tasks |= asked.tasks;
            parts.contents |= asked.contents;
            self.since = None;
        }
        if collected {
            self.collected = None;
            parts.contents = true;
        }
        (parts, std::mem::take(&mut self.tasks))
    }

    /// A listing took so long.
    pub(super) fn took(&mut self, parts: Parts, took: Duration, now: Instant) {
        let rest = (took * REST).min(MOST_REST);
        if parts.contents {
            self.contents_rested = now + rest;
        } else {
            self.rested = now + rest;
        }
    }

    /// When what events have called for is due.
    fn quick(&self) -> Option<Instant> {
        let rested = if self.parts.contents { self.rested.max(self.contents_rested) } else { self.rested };
        self.since.map(|(first, last)| (last + QUIET).min(first + PATIENCE).max(rested))
    }

    fn contents(&self) -> Option<Instant> {
        self.collected.map(|at| at.max(self.contents_rested))
    }

    fn task(&mut self, namespace: String, id: String, runs: bool) {
        if self.tasks.len() < MOST_TASKS {
            self.tasks.insert((namespace.into(), id), runs);
        } else {
            self.parts.tasks = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: Happening) -> Event {
        Event { namespace: "k8s.io".to_owned(), what }
    }

    /// One that has asked for all at `start`.
    fn begun(start: Instant) -> Agenda {
        let mut agenda = Agenda::new(start);
        assert_eq!(agenda.take(start).0, Parts::ALL);
        assert!(agenda.due() >= start + ALL.mul_f64(0.9) && agenda.due() <= start + ALL.mul_f64(1.1));
        agenda
    }

    #[test]
    fn a_burst_is_one_listing_and_an_endless_one_is_no_excuse() {
        let start = Instant::now();
        let mut agenda = begun(start);
        for n in 0..3 {
            agenda.note(event(Happening::Container), start + QUIET / 2 * n);
        }
        assert_eq!(agenda.due(), start + QUIET * 2);
        assert_eq!(agenda.take(start + QUIET).0, Parts::default());
        assert_eq!(agenda.take(agenda.due()).0, Parts { containers: true, ..Parts::default() });
        for n in 0..100 {
            agenda.note(event(Happening::Container), start + QUIET / 2 * n);
        }
        assert_eq!(agenda.due(), start + PATIENCE);
    }

    #[test]
    fn contents_are_looked_at_again_when_they_may_have_been_collected() {
        let start = Instant::now();
        let mut agenda = begun(start);
        agenda.note(event(Happening::Image), start);
        let (parts, _) = agenda.take(agenda.due());
        assert_eq!(parts, Parts { images: true, contents: true, ..Parts::default() });
        assert_eq!(agenda.due(), start + COLLECTED);
        assert_eq!(agenda.take(agenda.due()).0, Parts { contents: true, ..Parts::default() });
        agenda.note(event(Happening::Content), start + COLLECTED);
        agenda.note(event(Happening::Content), start + COLLECTED * 3 / 2);
        assert_eq!(agenda.due(), start + COLLECTED * 2);
    }

    #[test]
    fn tasks_are_told_without_asking() {
        let start = Instant::now();
        let mut agenda = begun(start);
        agenda.note(event(Happening::Started("a".to_owned())), start);
        agenda.note(event(Happening::Ended("a".to_owned())), start);
        let (parts, tasks) = agenda.take(agenda.due());
        assert_eq!(parts, Parts::default());
        assert_eq!(tasks, Tasks::from([(("k8s.io".into(), "a".to_owned()), false)]));
        for n in 0..=MOST_TASKS {
            agenda.note(event(Happening::Started(n.to_string())), start);
        }
        assert!(agenda.take(start + PATIENCE).0.tasks);
    }

    #[test]
    fn what_took_long_is_not_asked_soon_again() {
        let start = Instant::now();
        let mut agenda = begun(start);
        agenda.took(Parts::ALL, Duration::from_secs(1), start);
        agenda.note(event(Happening::Image), start);
        assert_eq!(agenda.due(), start + Duration::from_secs(10), "an image comes with its contents");
        agenda.took(Parts::ALL, Duration::from_secs(600), start);
        assert_eq!(agenda.due(), start + MOST_REST);
        let mut agenda = begun(start);
        agenda.took(Parts::ALL, Duration::from_secs(1), start);
        agenda.note(event(Happening::Container), start);
        assert_eq!(agenda.due(), start + QUIET, "contents aren't containers");
    }
}
