//! What is checked next: a machine without IO. Time is given, and counts from any moment.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::config::Budget;
use crate::image::{ImageName, Registry};

/// At the beginning, checks begin spread over at most this time.
const SPREAD: Duration = Duration::from_secs(30);

/// One thing to check: an image at one of its upstreams.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Item {
    pub(super) image: ImageName,
    /// Its URL.
    pub(super) upstream: String,
}

/// When what was last looked at, and whose turn it is. It counts nothing: a budget is asked before each check.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    lanes: HashMap<Registry, Lane>,
}

/// One registry's.
#[derive(Debug)]
struct Lane {
    budget: Budget,
    slots: BTreeMap<Item, Slot>,
    under_way: HashSet<Item>,
    /// Nothing before this.
    rests_until: Duration,
    /// Upstreams that are near their limits, and since when each is left alone.
    spared: HashMap<String, Duration>,
}

#[derive(Debug)]
struct Slot {
    /// When its state was last found out.
    last: Option<Duration>,
    due: Duration,
}

impl Schedule {
    /// This is what is to be checked from now on, and when each was last found out as far as that is known.
    pub(super) fn set(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        items: impl IntoIterator<Item = (Item, Option<Duration>)>,
        budget: impl Fn(&Registry) -> Budget,
    ) {
        let mut before = HashMap::new();
        for (registry, lane) in &mut self.lanes {
            before.insert(registry.clone(), std::mem::take(&mut lane.slots));
        }
        for (item, last) in items {
            let registry = &item.image.registry;
            let lane = self.lanes.entry(registry.clone()).or_insert_with(|| Lane::new(budget(registry)));
            if lane.budget.interval.is_zero() {
                continue;
            }
            let known = before.get_mut(registry).and_then(|slots| slots.remove(&item));
            let slot = match known {
                Some(known) if known.last >= last => known,
                _ => Slot::new(now, rng, &lane.budget, last),
            };
            lane.slots.insert(item, slot);
        }
        for lane in self.lanes.values_mut() {
            let Lane { slots, spared, .. } = lane;
            spared.retain(|upstream, _| slots.keys().any(|item| item.upstream == *upstream));
        }
        self.lanes.retain(|_, lane| !(lane.slots.is_empty() && lane.under_way.is_empty()));
    }

    /// What to check now, if anything: what was never checked, then what was longest ago. It is under way from then on.
    /// `is_spared`: its upstream is near a limit, and waits; once in an interval, by one check, it is asked how it is.
    pub(super) fn next(&mut self, now: Duration, is_spared: impl Fn(&Item) -> bool) -> Option<Item> {
        self.lanes.values_mut().find_map(|lane| lane.next(now, &is_spared))
    }

    /// When [`Self::next`] may have something next.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.lanes.values().filter_map(Lane::next_deadline).min()
    }

    /// Something was found out, by whomever, at `at`. `is_settled`: it need not be looked at again soon.
    pub(super) fn found(&mut self, rng: &mut impl Rng, item: &Item, at: Duration, is_settled: bool) {
        let Some(lane) = self.lanes.get_mut(&item.image.registry) else { return };
        let Some(slot) = lane.slots.get_mut(item).filter(|slot| slot.last < Some(at)) else { return };
        let interval = lane.budget.interval;
        let after = if is_settled { interval } else { interval / 8 };
        let jitter = after.mul_f64(rng.random_range(0.0..0.1));
        *slot = Slot { last: Some(at), due: at + after + jitter };
    }

    /// A check has ended, whatever was found.
    pub(super) fn ended(&mut self, item: &Item) {
        if let Some(lane) = self.lanes.get_mut(&item.image.registry) {
            lane.under_way.remove(item);
        }
    }

    /// Nothing of a registry before `until`.
    pub(super) fn rest(&mut self, registry: &Registry, until: Duration) {
        if let Some(lane) = self.lanes.get_mut(registry) {
            lane.rests_until = lane.rests_until.max(until);
        }
    }
}

impl Lane {
    fn new(budget: Budget) -> Self {
        Self {
            budget,
            slots: BTreeMap::new(),
            under_way: HashSet::new(),
            rests_until: Duration::ZERO,
            spared: HashMap::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < self.budget.parallel as usize
    }

    fn next(&mut self, now: Duration, is_spared: &impl Fn(&Item) -> bool) -> Option<Item> {
        if !self.has_room() || now < self.rests_until {
            return None;
        }
        let Self { budget, slots, under_way, spared, .. } = self;
        let due = slots.iter_mut().filter(|(item, slot)| slot.due <= now && !under_way.contains(*item));
        let mut due: Vec<_> = due.collect();
        due.sort_by_key(|(_, slot)| slot.last);
        let chosen = due.into_iter().find_map(|(item, slot)| {
            if !is_spared(item) {
                spared.remove(&item.upstream);
            } else if !is_asked_how_it_is(spared, &item.upstream, now, budget.interval) {
                slot.due = now + (budget.interval / 20).max(Duration::from_secs(1));
                return None;
            }
            Some(item)
        });
        let item = chosen?.clone();
        self.under_way.insert(item.clone());
        Some(item)
    }

    fn next_deadline(&self) -> Option<Duration> {
        if !self.has_room() {
            return None;
        }
        let waiting = self.slots.iter().filter(|(item, _)| !self.under_way.contains(*item));
        waiting.map(|(_, slot)| slot.due.max(self.rests_until)).min()
    }
}

impl Slot {
    fn new(now: Duration, rng: &mut impl Rng, budget: &Budget, last: Option<Duration>) -> Self {
        let interval = budget.interval;
        let due = match last {
            Some(last) => last + interval.mul_f64(rng.random_range(1.0..1.1)),
            None => now + (interval / 20).min(SPREAD).mul_f64(rng.random_range(0.0..1.0)),
        };
        Self { last, due }
    }
}

/// Whether an upstream near its limit is asked all the same: what it says of its quota comes with its answers, and without
/// any it would be near its limit for ever.
fn is_asked_how_it_is(
    spared: &mut HashMap<String, Duration>,
    upstream: &str,
    now: Duration,
    interval: Duration,
) -> bool {
    let since = spared.entry(upstream.to_owned()).or_insert(now);
    let is_time = now >= *since + interval;
    if is_time {
        *since = now;
    }
    is_time
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::cluster::checks::{Allowance, Answer, Ledger};
    use crate::config::Method;

    fn budget(most: u32) -> Budget {
        Budget {
            interval: Duration::from_secs(1_000),
            max_per_interval: most,
            parallel: 1,
            timeout: Duration::from_secs(5),
            method: Method::Head,
        }
    }

    fn item(n: usize) -> Item {
        Item { image: format!("reg.test/app:v{n}").parse().unwrap(), upstream: "https://reg.test".to_owned() }
    }

    fn items(count: usize) -> Vec<(Item, Option<Duration>)> {
        (0..count).map(|n| (item(n), None)).collect()
    }

    /// A node with a schedule and a budget that is asked before each check, as the monitor does it.
    struct Node {
        now: Duration,
        rng: SmallRng,
        budget: Budget,
        schedule: Schedule,
        ledger: Ledger,
        checked: Vec<(Duration, Item)>,
    }

    impl Node {
        fn new(seed: u64, images: usize, most: u32) -> Self {
            let mut node = Self {
                now: Duration::from_secs(100_000),
                rng: SmallRng::seed_from_u64(seed),
                budget: budget(most),
                schedule: Schedule::default(),
                ledger: Ledger::alone(),
                checked: Vec::new(),
            };
            node.begin(images);
            node
        }

        fn last(&self, item: &Item) -> Option<Duration> {
            self.checked.iter().rfind(|(_, checked)| checked == item).map(|(at, _)| *at)
        }

        fn begin(&mut self, images: usize) {
            self.schedule = Schedule::default();
            let items: Vec<_> = items(images).into_iter().map(|(item, _)| (item.clone(), self.last(&item))).collect();
            self.schedule.set(self.now, &mut self.rng, items, |_| self.budget);
        }

        /// It is killed, and what is on the disk is what it knows.
        fn restart(&mut self, images: usize) {
            let registry = item(0).image.registry;
            let kept = self.ledger.kept(&registry);
            self.now += Duration::from_secs(self.rng.random_range(0..20));
            self.ledger = Ledger::alone();
            self.ledger.restore(self.now, registry, &kept);
            self.begin(images);
        }

        /// Goes on to the next deadline, and checks what is due.
        fn step(&mut self) {
            self.now = self.schedule.next_deadline().unwrap().max(self.now + Duration::from_millis(1));
            while let Some(next) = self.schedule.next(self.now, |_| false) {
                let allowance = Allowance::of(&self.budget).unwrap();
                match self.ledger.ask(self.now, &next.image.registry, &allowance, 1) {
                    Answer::Granted(1) => {
                        let oldest = self.schedule.lanes.values().flat_map(|lane| &lane.slots);
                        let due = oldest.filter(|(_, slot)| slot.due <= self.now).map(|(_, slot)| slot.last);
                        assert_eq!(due.min(), Some(self.last(&next)), "the oldest first");
                        self.checked.push((self.now, next.clone()));
                        self.schedule.found(&mut self.rng, &next, self.now, true);
                    }
                    Answer::Later(wait) => self.schedule.rest(&next.image.registry, self.now + wait),
                    other => panic!("{other:?}"),
                }
                self.schedule.ended(&next);
                self.now += Duration::from_millis(100);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn budgets_hold_and_everybody_has_a_turn(
            seed: u64, images in 1usize..30, most in 1u32..12, restarts in prop::collection::vec(1usize..60, 0..6),
        ) {
            let mut node = Node::new(seed, images, most);
            let began = node.now;
            for steps in restarts {
                (0..steps).for_each(|_| node.step());
                node.restart(images);
            }
            // Each is checked within as many spans as the budget needs for all, and one interval.
            let span = Duration::from_secs(1_000 + 10 + 5);
            let rounds = u32::try_from(images.div_ceil(most as usize)).unwrap();
            let bound = span * (rounds + 1) + Duration::from_secs(200);
            while node.now < began + bound * 3 {
                node.step();
            }
            for window in node.checked.windows(most as usize + 1) {
                let (from, to) = (window.first().unwrap().0, window.last().unwrap().0);
                prop_assert!(to - from >= Duration::from_secs(1_000), "more than {} within {:?}", most, to - from);
            }
            for n in 0..images {
                let times: Vec<Duration> =
                    node.checked.iter().filter(|(_, checked)| *checked == item(n)).map(|(at, _)| *at).collect();
                prop_assert!(times.first().is_some_and(|at| *at <= began + bound), "{n} was never checked");
                for pair in times.windows(2) {
                    prop_assert!(pair[1] - pair[0] >= Duration::from_secs(1_000), "once in an interval");
                    prop_assert!(pair[1] - pair[0] <= bound, "{:?} between two checks", pair[1] - pair[0]);
                }
            }
        }
    }

    #[test]
    fn no_more_at_a_time_than_may_be() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut schedule = Schedule::default();
        let two = Budget { parallel: 2, ..budget(9) };
        schedule.set(Duration::ZERO, &mut rng, items(5), |_| two);
        let now = Duration::from_secs(60);
        let first = schedule.next(now, |_| false).unwrap();
        assert!(schedule.next(now, |_| false).is_some_and(|second| second != first));
        assert_eq!(schedule.next(now, |_| false), None);
        assert_eq!(schedule.next_deadline(), None, "the end of one wakes it");
        schedule.ended(&first);
        schedule.found(&mut rng, &first, now, true);
        assert!(schedule.next(now, |_| false).is_some());
    }

    #[test]
    fn checks_are_spread() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (interval, most) = (Duration::from_secs(1_000), Duration::from_secs(1_100));
        let dues = |schedule: &Schedule| {
            let slots = schedule.lanes.values().flat_map(|lane| lane.slots.values());
            let dues: HashSet<Duration> = slots.map(|slot| slot.due).collect();
            assert!(dues.len() > 10, "{dues:?}");
            dues
        };
        let mut schedule = Schedule::default();
        schedule.set(Duration::ZERO, &mut rng, items(20), |_| budget(9));
        assert!(dues(&schedule).into_iter().all(|due| due <= SPREAD), "what was never checked is checked soon");
        (0..20).for_each(|n| schedule.found(&mut rng, &item(n), Duration::ZERO, true));
        assert!(dues(&schedule).into_iter().all(|due| (interval..most).contains(&due)));
        // The same for who begins anew.
        let mut schedule = Schedule::default();
        let known = items(20).into_iter().map(|(item, _)| (item, Some(Duration::ZERO)));
        schedule.set(Duration::from_secs(1), &mut rng, known, |_| budget(9));
        assert!(dues(&schedule).into_iter().all(|due| (interval..most).contains(&due)));
    }

    #[test]
    fn what_others_found_is_not_checked_again() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut schedule = Schedule::default();
        let (now, interval) = (Duration::from_secs(60), Duration::from_secs(1_000));
        schedule.set(Duration::ZERO, &mut rng, items(1), |_| budget(9));
        schedule.found(&mut rng, &item(0), now, true);
        assert!(schedule.next_deadline().unwrap() >= now + interval);
        // What went wrong for the moment is looked at again sooner.
        schedule.found(&mut rng, &item(0), now + interval, false);
        assert!(schedule.next_deadline().unwrap() < now + interval + interval / 4);
        // Set again, it stays as it is.
        let before = schedule.next_deadline();
        schedule.set(now + interval, &mut rng, items(1), |_| budget(9));
        assert_eq!(schedule.next_deadline(), before);
        schedule.set(now, &mut rng, items(1), |_| Budget { interval: Duration::ZERO, ..budget(9) });
        assert!(schedule.next_deadline().is_some(), "a registry's budget doesn't change while it is known");
    }

    #[test]
    fn an_upstream_near_its_limit_is_spared_and_asked_once_in_an_interval() {
        for images in [1, 9] {
            let mut rng = SmallRng::seed_from_u64(1);
            let mut schedule = Schedule::default();
            schedule.set(Duration::ZERO, &mut rng, items(images), |_| budget(9));
            let mut now = Duration::from_secs(60);
            let mut asked = Vec::new();
            while now < Duration::from_secs(5_000) {
                while let Some(next) = schedule.next(now, |_| true) {
                    asked.push(now);
                    schedule.found(&mut rng, &next, now, true);
                    schedule.ended(&next);
                }
                now = schedule.next_deadline().unwrap().max(now + Duration::from_secs(1));
            }
            assert!((3..=4).contains(&asked.len()), "{images} images: {asked:?}");
            assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_secs(1_000)), "{asked:?}");
            // Far from its limit again, all that waited are asked.
            now += Duration::from_secs(100);
            let mut others = 0;
            while let Some(next) = schedule.next(now, |_| false) {
                others += 1;
                schedule.found(&mut rng, &next, now, true);
                schedule.ended(&next);
            }
            assert!(others + 4 >= images, "{others} of {images}");
        }
    }
}
