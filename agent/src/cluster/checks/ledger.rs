//! What was granted of a registry's budget, by whom it may be.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Allowance, bucket_of_registry};
use crate::cluster::Bucket;
use crate::image::Registry;

/// The most registries that anything is remembered of.
const MOST_BOOKS: usize = 1_024;
/// When to ask again where nothing can be granted for want of room.
const CROWDED: Duration = Duration::from_secs(60);

/// The checks that were granted, by registry, and whether this node may grant more.
///
/// Who grants must be sure of all that was granted within the last [`Allowance::span`]. There are three ways to be:
/// - to have been the owner since, and sure when that began;
/// - to have been the owner for longer than that: whoever granted before doesn't count any more;
/// - to have taken over the book of the owner before, which gives it away once and never grants from it again.
///
/// What a node is sure of outlives it ([`Kept`]): nobody else can have become sure by waiting while it was away for less
/// than the span. So restarts cost nothing, a change of owners costs nothing where the old one is there to hand over, and
/// otherwise no check is made for one span. That all nodes agree on who owns what within [`Allowance::skew`] is taken for
/// granted: two halves of a cluster that are parted for longer have a budget each.
///
/// Time is given, and counts from any moment that is the same for every process of this node: 1970.
#[derive(Debug)]
pub struct Ledger {
    books: HashMap<Registry, Book>,
    /// By bucket: since when this node owns it, and when it last did.
    reigns: Vec<Reign>,
    /// There is no cluster: this node owns everything, always.
    is_alone: bool,
}

#[derive(Debug, Default)]
struct Book {
    /// When checks were granted, in order.
    given: VecDeque<Duration>,
    /// Until when `given` is known to be all.
    sure: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
struct Reign {
    since: Option<Duration>,
    /// From when to when, the time before.
    last: Option<(Duration, Duration)>,
}

/// What outlives the process of a [`Ledger`]: of one registry, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    given: Vec<u64>,
    sure: Option<u64>,
}

/// What an owner says to who would check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// So many may begin within [`Allowance::life`], at least one.
    Granted(u32),
    /// None for so long.
    Later(Duration),
    /// This node isn't sure yet of what was granted before it was the owner. It will be by itself after so long; at once,
    /// if it is given the book of who was.
    Unsure(Duration),
    /// Another owns this registry's budget.
    NotOwner,
}

impl Ledger {
    /// One of a cluster: it owns nothing until it is told so.
    #[must_use]
    pub fn new() -> Self {
        let reigns = Bucket::all().map(|_| Reign::default()).collect();
        Self { books: HashMap::new(), reigns, is_alone: false }
    }

    /// One of a node by itself.
    #[must_use]
    pub fn alone() -> Self {
        Self { is_alone: true, ..Self::new() }
    }

    /// Takes in what an earlier process knew.
    pub fn restore(&mut self, now: Duration, registry: Registry, kept: &Kept) {
        // A clock that went back: what seems to be still to come was granted lately, and nobody knows how long ago.
        let given = kept.given.iter().map(|at| Duration::from_millis(*at).min(now)).collect();
        let sure = kept.sure.map(Duration::from_millis).filter(|sure| *sure <= now);
        self.books.insert(registry, Book { given, sure });
    }

    /// What is to outlive this process, so that it holds what was granted to this moment.
    #[must_use]
    pub fn kept(&self, registry: &Registry) -> Kept {
        let millis = |at: Duration| u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let Some(book) = self.books.get(registry) else { return Kept::default() };
        // What a node granted by itself says nothing of what others in a cluster did.
        let sure = book.sure.filter(|_| !self.is_alone).map(millis);
        // Rounded up: what is remembered must not end earlier than it would have.
        Kept { given: book.given.iter().map(|at| millis(*at) + 1).collect(), sure }
    }

    /// Which buckets this node owns from now on, as their first owner.
    pub fn owns(&mut self, now: Duration, is_first: impl Fn(Bucket) -> bool) {
        for (bucket, reign) in Bucket::all().zip(&mut self.reigns) {
            match (reign.since, is_first(bucket)) {
                (None, true) => reign.since = Some(now),
                (Some(since), false) => {
                    (reign.since, reign.last) = (None, Some((since, now)));
                    let books = self.books.iter_mut().filter(|(registry, _)| bucket_of_registry(registry) == bucket);
                    for (_, book) in books {
                        book.sure = book.sure.map(|sure| if sure >= since { now } else { sure });
                    }
                }
                _ => {}
            }
        }
    }

    /// The registries of which this node is sure and the owner: what it keeps of them wants to be renewed now and then.
    pub fn sure(&mut self, now: Duration) -> Vec<Registry> {
        let Self { books, reigns, .. } = self;
        let held = books.iter_mut().filter_map(|(registry, book)| {
            let since = reigns[usize::from(bucket_of_registry(registry).number())].since?;
            let sure = book.sure.as_mut().filter(|sure| **sure >= since)?;
            *sure = now;
            Some(registry.clone())
        });
        held.collect()
    }

    /// Somebody would make `wanted` checks of a registry.
    pub fn ask(&mut self, now: Duration, registry: &Registry, allowance: &Allowance, wanted: u32) -> Answer {
        let span = allowance.span();
        let since = match self.reign(registry).since {
            Some(since) => since,
            None if self.is_alone => Duration::ZERO,
            None => return Answer::NotOwner,
        };
        if !self.books.contains_key(registry) && !self.has_room(now, span) {
            return Answer::Later(CROWDED);
        }
        let book = self.books.entry(registry.clone()).or_default();
        let was_sure = book.sure.is_some_and(|sure| sure >= since || sure + span > since + allowance.skew());
        let by_itself = since + span + allowance.skew();
        if !self.is_alone && !was_sure && now < by_itself {
            return Answer::Unsure(by_itself - now);
        }
        book.sure = Some(now);
        book.given.retain(|at| now < *at + span);
        let most = allowance.most as usize;
        if let Some(over) = book.given.len().checked_sub(most) {
            let free_at = book.given.get(over).map_or(now, |at| *at + span);
            return Answer::Later(free_at.saturating_sub(now));
        }
        let free = most - book.given.len();
        let granted = wanted.max(1).min(u32::try_from(free).unwrap_or(u32::MAX));
        book.given.extend(std::iter::repeat_n(now, granted as usize));
        Answer::Granted(granted)
    }

    /// Gives the book of a registry to its new owner: how long ago each check was granted. `None`: this node isn't sure
    /// itself, or owns it still. What was given away must outlive this process before the other hears of it.
    pub fn hand_over(&mut self, now: Duration, registry: &Registry, allowance: &Allowance) -> Option<Vec<Duration>> {
        let (span, skew) = (allowance.span(), allowance.skew());
        let reign = self.reign(registry).clone();
        if reign.since.is_some() || self.is_alone {
            return None;
        }
        let sure = match self.books.get(registry) {
            Some(book) => book.sure,
            // Never asked for, and owned for so long that nobody else's grants count.
            None => reign.last.filter(|(since, until)| *since + span + skew <= *until).map(|(_, until)| until),
        };
        // Later, somebody else may have become sure by waiting.
        sure.filter(|sure| now + skew < *sure + span)?;
        let book = self.books.entry(registry.clone()).or_default();
        book.sure = None;
        Some(book.given.iter().map(|at| now.saturating_sub(*at)).filter(|age| *age < span).collect())
    }

    /// Takes over the book of the owner before.
    pub fn take_over(&mut self, now: Duration, registry: &Registry, ages: &[Duration]) {
        let book = self.books.entry(registry.clone()).or_default();
        let mut given: Vec<_> = ages.iter().map(|age| now.saturating_sub(*age)).chain(book.given.drain(..)).collect();
        given.sort_unstable();
        book.given = given.into();
        book.sure = Some(now);
    }

    /// How many checks of a registry count at this moment; `None`: that isn't this node's to know.
    #[must_use]
    pub fn used(&self, now: Duration, registry: &Registry, allowance: &Allowance) -> Option<usize> {
        if !self.is_alone && self.reign(registry).since.is_none() {
            return None;
        }
        let span = allowance.span();
        let given = self.books.get(registry).map(|book| book.given.iter().filter(|at| now < **at + span));
        Some(given.map_or(0, Iterator::count))
    }

    fn reign(&self, registry: &Registry) -> &Reign {
        // There is one for each bucket.
        &self.reigns[usize::from(bucket_of_registry(registry).number())]
    }

    fn has_room(&mut self, now: Duration, span: Duration) -> bool {
        if self.books.len() >= MOST_BOOKS {
            let is_old = |at: Option<&Duration>| at.is_none_or(|at| *at + 2 * span < now);
            self.books.retain(|_, book| !(is_old(book.given.back()) && is_old(book.sure.as_ref())));
        }
        self.books.len() < MOST_BOOKS
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance {
        most: 3,
        window: Duration::from_secs(100),
        life: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_000_000 + seconds)
    }

    fn hub() -> Registry {
        Registry::docker_hub()
    }

    #[test]
    fn one_by_itself_grants_at_once_and_no_more_than_it_may() {
        let mut ledger = Ledger::alone();
        assert_eq!(ledger.ask(at(0), &hub(), &ALLOWANCE, 2), Answer::Granted(2));
        assert_eq!(ledger.ask(at(50), &hub(), &ALLOWANCE, 2), Answer::Granted(1));
        assert_eq!(ledger.ask(at(60), &hub(), &ALLOWANCE, 1), Answer::Later(Duration::from_secs(50)));
        let kept = ledger.kept(&hub());
        let mut ledger = Ledger::alone();
        ledger.restore(at(61), hub(), &kept);
        assert_eq!(ledger.used(at(61), &hub(), &ALLOWANCE), Some(3));
        assert!(matches!(ledger.ask(at(61), &hub(), &ALLOWANCE, 1), Answer::Later(_)), "a restart frees nothing");
        assert_eq!(ledger.ask(at(111), &hub(), &ALLOWANCE, 9), Answer::Granted(2));
        // With less allowed than was granted already, it waits until that is less.
        let less = Allowance { most: 1, ..ALLOWANCE };
        assert_eq!(ledger.ask(at(111), &hub(), &less, 1), Answer::Later(Duration::from_secs(110)));
    }

    #[test]
    fn a_clock_that_went_back_frees_nothing() {
        let mut ledger = Ledger::alone();
        ledger.ask(at(5_000), &hub(), &ALLOWANCE, 3);
        let kept = ledger.kept(&hub());
        let mut ledger = Ledger::alone();
        ledger.restore(at(0), hub(), &kept);
        assert_eq!(ledger.ask(at(0), &hub(), &ALLOWANCE, 1), Answer::Later(Duration::from_secs(110)));
    }

    #[test]
    fn a_new_owner_waits_or_is_handed_the_book() {
        let (mut old, mut new) = (Ledger::new(), Ledger::new());
        assert_eq!(old.ask(at(0), &hub(), &ALLOWANCE, 1), Answer::NotOwner);
        old.owns(at(0), |_| true);
        assert_eq!(old.ask(at(0), &hub(), &ALLOWANCE, 1), Answer::Unsure(Duration::from_secs(135)));
        assert_eq!(old.ask(at(135), &hub(), &ALLOWANCE, 2), Answer::Granted(2));
        assert_eq!(old.hand_over(at(140), &hub(), &ALLOWANCE), None, "it is the owner still");
        old.owns(at(150), |_| false);
        new.owns(at(150), |_| true);
        assert!(matches!(new.ask(at(151), &hub(), &ALLOWANCE, 1), Answer::Unsure(_)));
        let ages = old.hand_over(at(151), &hub(), &ALLOWANCE).unwrap();
        assert_eq!(ages, [Duration::from_secs(16); 2]);
        assert_eq!(old.hand_over(at(152), &hub(), &ALLOWANCE), None, "once");
        new.take_over(at(152), &hub(), &ages);
        assert_eq!(new.ask(at(153), &hub(), &ALLOWANCE, 9), Answer::Granted(1));
        // Started again, it goes on where it was.
        let kept = new.kept(&hub());
        let mut again = Ledger::new();
        again.restore(at(160), hub(), &kept);
        again.owns(at(165), |_| true);
        assert!(matches!(again.ask(at(165), &hub(), &ALLOWANCE, 1), Answer::Later(_)));
        // Long after, nobody knows what others did meanwhile.
        let mut late = Ledger::new();
        late.restore(at(400), hub(), &kept);
        late.owns(at(400), |_| true);
        assert!(matches!(late.ask(at(400), &hub(), &ALLOWANCE, 1), Answer::Unsure(_)));
    }

    #[test]
    fn what_one_granted_by_itself_is_no_word_on_a_cluster() {
        let mut alone = Ledger::alone();
        alone.ask(at(0), &hub(), &ALLOWANCE, 1);
        let mut ledger = Ledger::new();
        ledger.restore(at(1), hub(), &alone.kept(&hub()));
        ledger.owns(at(1), |_| true);
        assert!(matches!(ledger.ask(at(2), &hub(), &ALLOWANCE, 1), Answer::Unsure(_)));
    }
}
