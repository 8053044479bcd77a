//! Owners that come, go, die, and hand over, and a registry that counts.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::{Allowance, Answer, Kept, Ledger};
use crate::image::Registry;

const NODES: usize = 4;
const ALLOWANCE: Allowance = Allowance {
    most: 5,
    window: Duration::from_secs(200),
    life: Duration::from_secs(8),
    timeout: Duration::from_secs(7),
};
/// How long a step is.
const STEP: Duration = Duration::from_secs(3);

/// The higher its place in the list, the higher it ranks among the owners.
struct Node {
    ledger: Option<Ledger>,
    kept: Kept,
    /// Who is up, as it sees it, and what it will see when.
    view: [bool; NODES],
    coming: VecDeque<(Duration, [bool; NODES])>,
}

struct World {
    now: Duration,
    rng: SmallRng,
    registry: Registry,
    nodes: Vec<Node>,
    /// When the registry sees which check.
    checks: Vec<Duration>,
    granted: usize,
    handed_over: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let node = || Node {
            ledger: Some(Ledger::new()),
            kept: Kept::default(),
            view: [false; NODES],
            coming: VecDeque::new(),
        };
        let mut world = Self {
            now: Duration::from_secs(1_000_000),
            rng: SmallRng::seed_from_u64(seed),
            registry: Registry::docker_hub(),
            nodes: (0..NODES).map(|_| node()).collect(),
            checks: Vec::new(),
            granted: 0,
            handed_over: 0,
        };
        world.changed();
        world
    }

    /// Members have changed: each node hears of it within the skew.
    fn changed(&mut self) {
        let up: [bool; NODES] = std::array::from_fn(|n| self.nodes[n].ledger.is_some());
        for node in &mut self.nodes {
            let heard = self.now + ALLOWANCE.skew().mul_f64(self.rng.random_range(0.0..0.9));
            let after = node.coming.back().map_or(heard, |(at, _)| heard.max(*at));
            node.coming.push_back((after, up));
        }
    }

    fn first_of(view: &[bool; NODES]) -> Option<usize> {
        view.iter().rposition(|up| *up)
    }

    fn hear(&mut self) {
        for (n, node) in self.nodes.iter_mut().enumerate() {
            while node.coming.front().is_some_and(|(at, _)| *at <= self.now) {
                if let Some((_, view)) = node.coming.pop_front() {
                    node.view = view;
                }
            }
            if let Some(ledger) = &mut node.ledger {
                let is_first = Self::first_of(&node.view) == Some(n);
                ledger.owns(self.now, |_| is_first);
            }
        }
    }

    fn end(&mut self, n: usize) {
        if self.nodes[n].ledger.take().is_some() {
            self.changed();
        }
    }

    fn begin(&mut self, n: usize) {
        if self.nodes[n].ledger.is_some() {
            return;
        }
        let mut ledger = Ledger::new();
        ledger.restore(self.now, self.registry.clone(), &self.nodes[n].kept);
        self.nodes[n].ledger = Some(ledger);
        // It knows nobody for a moment, and is nobody's owner.
        self.nodes[n].view = [false; NODES];
        self.nodes[n].coming.clear();
        self.changed();
    }

    fn keep(&mut self, n: usize) {
        if let Some(ledger) = &self.nodes[n].ledger {
            self.nodes[n].kept = ledger.kept(&self.registry);
        }
    }

    fn ask(&mut self, n: usize) {
        let Some(owner) = Self::first_of(&self.nodes[n].view) else { return };
        let wanted = self.rng.random_range(1..4);
        let Some(ledger) = &mut self.nodes[owner].ledger else { return };
        match ledger.ask(self.now, &self.registry, &ALLOWANCE, wanted) {
            Answer::Granted(granted) => {
                self.keep(owner);
                // The owner may be killed now; the checks are made or not, and come at any time until the latest.
                for _ in 0..granted {
                    let late = (ALLOWANCE.life + ALLOWANCE.timeout).mul_f64(self.rng.random_range(0.0..1.0));
                    self.checks.push(self.now + late);
                }
                self.granted += granted as usize;
            }
            Answer::Unsure(_) => self.hand_over(owner),
            Answer::Later(_) | Answer::NotOwner => {}
        }
    }

    /// The new owner asks the one beside it.
    fn hand_over(&mut self, new: usize) {
        let beside = (0..NODES).rev().find(|n| *n != new && self.nodes[new].view[*n]);
        let Some(old) = beside else { return };
        let Some(ledger) = &mut self.nodes[old].ledger else { return };
        let Some(ages) = ledger.hand_over(self.now, &self.registry, &ALLOWANCE) else { return };
        self.keep(old);
        // The answer may be lost.
        if self.rng.random_bool(0.9)
            && let Some(ledger) = &mut self.nodes[new].ledger
        {
            ledger.take_over(self.now, &self.registry, &ages);
            self.keep(new);
            self.handed_over += 1;
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        self.hear();
        let n = self.rng.random_range(0..NODES);
        match self.rng.random_range(0..100) {
            0 => self.end(n),
            1..=3 => self.begin(n),
            4 => {
                // A restart.
                self.end(n);
                self.now += Duration::from_secs(self.rng.random_range(0..30));
                self.begin(n);
            }
            5..=60 => self.ask(n),
            _ => {}
        }
    }

    /// The most that the registry saw within any window.
    fn most(&mut self) -> usize {
        self.checks.sort_unstable();
        let mut most = 0;
        let mut from = 0;
        for to in 0..self.checks.len() {
            while self.checks[to] - self.checks[from] >= ALLOWANCE.window {
                from += 1;
            }
            most = most.max(to - from + 1);
        }
        most
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_window_has_more_checks_than_it_may(seed: u64) {
        let mut world = World::new(seed);
        for _ in 0..2_000 {
            world.step();
        }
        prop_assert!(world.most() <= ALLOWANCE.most as usize, "{} in a window", world.most());
    }
}

/// And they are made: a budget that is never used holds as well.
#[test]
fn owners_that_change_grant_nevertheless() {
    let (mut granted, mut handed_over) = (0, 0);
    for seed in 0..20 {
        let mut world = World::new(seed);
        for _ in 0..2_000 {
            world.step();
        }
        granted += world.granted;
        handed_over += world.handed_over;
    }
    // 6,000 s hold 28 spans of 5 checks each.
    assert!(granted > 20 * 28 * 5 / 4, "{granted} checks");
    assert!(handed_over > 5, "{handed_over} books were handed over");
}
