use std::time::Duration;

use rand::{Rng, RngExt as _};

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Halves of a cluster that have forgotten each other meet again by the seeds.
const AMONG_OTHERS: Duration = Duration::from_secs(60);

/// When to look for members at the seeds: at once, again after 1 s to 30 s while lonely, and every minute otherwise.
#[derive(Debug)]
pub struct Search {
    wait: Duration,
    due: Duration,
}

impl Search {
    /// One that begins now.
    #[must_use]
    pub const fn new(now: Duration) -> Self {
        Self { wait: FIRST_WAIT, due: now }
    }

    /// When to look next.
    #[must_use]
    pub const fn due(&self) -> Duration {
        self.due
    }

    /// The seeds are being asked. Lonely is who sees fewer members than there were.
    pub fn asked(&mut self, now: Duration, is_lonely: bool, rng: &mut impl Rng) {
        let wait = if is_lonely { self.wait } else { AMONG_OTHERS };
        self.wait = if is_lonely { (self.wait * 2).min(LONGEST_WAIT) } else { FIRST_WAIT };
        // The nodes of a cluster often start at the same moment.
        self.due = now + wait.mul_f64(rng.random_range(0.75..1.25));
    }

    /// Somebody is missing since now.
    pub fn is_lonely(&mut self, now: Duration) {
        self.due = self.due.min(now + self.wait);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn the_lonely_ask_less_and_less_often_and_the_others_hardly_ever() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut search = Search::new(Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let now = search.due();
            search.asked(now, true, &mut rng);
            waits.push((search.due() - now).as_secs_f64());
        }
        for (wait, meant) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]) {
            assert!((meant * 0.75..=meant * 1.25).contains(wait), "{waits:?}");
        }
        let now = search.due();
        search.asked(now, false, &mut rng);
        assert!(search.due() - now >= Duration::from_secs(45));
        search.is_lonely(now);
        assert_eq!(search.due(), now + FIRST_WAIT);
    }
}
