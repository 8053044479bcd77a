//! Who keeps, for all nodes, which credentials opened which repository.
//!
//! The members that rank first for a hash of both are told when a registry lets these credentials in, and when it won't
//! have them any more. In an outage they are asked by who doesn't know itself. What they say is held against nothing: see
//! ARCHITECTURE.md for what a lie is worth.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Ring;
use crate::image::NodeId;

/// So many members are told that credentials opened a repository.
const TOLD: usize = 3;
/// So many are asked, and told of a refusal: who was told may have moved down since, as others came.
const ASKED: usize = 5;
/// So much is kept here of what others tell.
const MOST: usize = 8192;

/// Credentials, and a repository at its registry: the hash of all of them under a key of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opener(pub [u8; 32]);

/// What a registry said of credentials at a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Right {
    /// They don't open it.
    Refused,
    /// They open it.
    Opened,
}

/// What was told last, and how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// What the registry said.
    pub right: Right,
    /// When it was told.
    pub age: Duration,
}

impl Opener {
    /// Who is told of it.
    #[must_use]
    pub fn keepers(&self, ring: &Ring, right: Right) -> Vec<NodeId> {
        let most = match right {
            Right::Opened => TOLD,
            Right::Refused => ASKED,
        };
        self.first(ring, most)
    }

    /// Who is asked.
    #[must_use]
    pub fn asked(&self, ring: &Ring) -> Vec<NodeId> {
        self.first(ring, ASKED)
    }

    fn first(&self, ring: &Ring, most: usize) -> Vec<NodeId> {
        let seed = self.0.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
        let mut ranked = ring.by_rank(seed);
        ranked.truncate(most);
        ranked
    }
}

impl fmt::Display for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The newest of what several keep; of what is equally old, the refusal.
#[must_use]
pub fn newest(all: impl IntoIterator<Item = Kept>) -> Option<Kept> {
    all.into_iter().min_by_key(|kept| (kept.age, kept.right))
}

/// What members told this node, to be kept for all. When there is too much of it, the oldest goes of the one who told most:
/// so none crowds out what the others told. Time is counted from 1970.
#[derive(Debug)]
pub struct Told {
    entries: HashMap<Opener, Entry>,
    lifetime: Duration,
}

/// One thing that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What the registry said.
    pub right: Right,
    /// When it was told.
    pub at: Duration,
    /// By whom.
    pub by: NodeId,
}

impl Told {
    /// What an earlier process was told, as far as it still counts; each thing for so long.
    #[must_use]
    pub fn restored(entries: impl IntoIterator<Item = (Opener, Entry)>, lifetime: Duration) -> Self {
        Self { entries: entries.into_iter().take(MOST).collect(), lifetime }
    }

    /// A registry said so to `by`, just now. What has changed by it; `None` is gone.
    pub fn told(&mut self, now: Duration, by: NodeId, opener: Opener, right: Right) -> Vec<(Opener, Option<Entry>)> {
        let is_known = self.entries.contains_key(&opener);
        if self.lifetime.is_zero() || (right == Right::Refused && !is_known) {
            // Of those that never opened it there is nothing to take back; and anybody may show wrong ones.
            return Vec::new();
        }
        let mut changed = Vec::new();
        if !is_known && self.entries.len() >= MOST {
            let over = self.entries.extract_if(|_, entry| entry.age(now) >= self.lifetime);
            changed.extend(over.map(|(opener, _)| (opener, None)));
            if self.entries.len() >= MOST
                && let Some(oldest) = self.oldest_of_most()
            {
                self.entries.remove(&oldest);
                changed.push((oldest, None));
            }
        }
        let entry = Entry { right, at: now, by };
        self.entries.insert(opener, entry);
        changed.push((opener, Some(entry)));
        changed
    }

    /// What was told last.
    #[must_use]
    pub fn kept(&self, now: Duration, opener: &Opener) -> Option<Kept> {
        let entry = self.entries.get(opener)?;
        Some(Kept { right: entry.right, age: entry.age(now) }).filter(|kept| kept.age < self.lifetime)
    }

    fn oldest_of_most(&self) -> Option<Opener> {
        let mut told: HashMap<NodeId, usize> = HashMap::new();
        self.entries.values().for_each(|entry| *told.entry(entry.by).or_default() += 1);
        let (most, _) = told.into_iter().max_by_key(|(node, told)| (*told, *node))?;
        let its = self.entries.iter().filter(|(_, entry)| entry.by == most);
        its.min_by_key(|(opener, entry)| (entry.at, opener.0)).map(|(opener, _)| *opener)
    }
}

impl Entry {
    fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Member;
    use crate::image::Zone;

    fn node(n: u16) -> NodeId {
        let mut number = [0; 16];
        number[..2].copy_from_slice(&n.to_be_bytes());
        NodeId::new(number)
    }

    fn ring(members: impl Iterator<Item = u16>) -> Ring {
        let member = |n: u16| Member {
            node: node(n),
            addr: ([127, 0, 0, 1], n).into(),
            zone: Zone::default(),
            start: 1,
            settled: true,
        };
        Ring::new(node(0), members.map(member))
    }

    fn openers() -> impl Iterator<Item = Opener> {
        (0..200_u8).map(|n| Opener([n.wrapping_mul(37); 32]))
    }

    #[test]
    fn who_is_told_is_asked_and_hears_of_a_refusal() {
        let ring = ring(0..20);
        for opener in openers() {
            let (told, asked) = (opener.keepers(&ring, Right::Opened), opener.asked(&ring));
            assert_eq!((told.len(), &asked[..TOLD]), (TOLD, told.as_slice()));
            assert_eq!(opener.keepers(&ring, Right::Refused), asked);
        }
    }

    #[test]
    fn it_is_found_again_though_members_come_and_go() {
        let (before, grown, shrunk) = (ring(0..20), ring(0..40), ring((0..20).filter(|n| n % 10 > 1)));
        let found_in = |ring: &Ring| {
            let is_found = |opener: &Opener| {
                let asked = opener.asked(ring);
                opener.keepers(&before, Right::Opened).iter().any(|told| asked.contains(told))
            };
            openers().filter(is_found).count()
        };
        let (grown, shrunk) = (found_in(&grown), found_in(&shrunk));
        assert!(grown >= 190 && shrunk >= 190, "of 200, {grown} in one twice as large, {shrunk} where four are gone");
    }

    #[test]
    fn the_newest_word_counts() {
        let kept = |right, age| Kept { right, age: Duration::from_secs(age) };
        let (opened, refused) = (Right::Opened, Right::Refused);
        assert_eq!(newest([]), None);
        assert_eq!(newest([kept(opened, 9), kept(refused, 3)]), Some(kept(refused, 3)));
        assert_eq!(newest([kept(opened, 3), kept(refused, 9)]), Some(kept(opened, 3)));
        assert_eq!(newest([kept(opened, 3), kept(refused, 3)]), Some(kept(refused, 3)));
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn told() -> Told {
        Told::restored([], HOUR)
    }

    fn numbered(n: usize) -> Opener {
        let mut opener = [0; 32];
        opener[..8].copy_from_slice(&n.to_be_bytes());
        Opener(opener)
    }

    fn right_of(told: &Told, now: Duration, opener: Opener) -> Option<Right> {
        told.kept(now, &opener).map(|kept| kept.right)
    }

    #[test]
    fn a_refusal_takes_back_what_was_told_and_nothing_else() {
        let (mut told, opener) = (told(), numbered(1));
        assert_eq!(told.told(HOUR, node(1), opener, Right::Refused), [], "nobody had it");
        assert_eq!(told.told(HOUR, node(1), opener, Right::Opened).len(), 1);
        assert_eq!(right_of(&told, HOUR, opener), Some(Right::Opened));
        assert_eq!(right_of(&told, HOUR, numbered(2)), None);
        assert_eq!(told.told(HOUR, node(2), opener, Right::Refused).len(), 1);
        assert_eq!(right_of(&told, HOUR, opener), Some(Right::Refused), "whoever heard of it");
        told.told(HOUR, node(2), opener, Right::Opened);
        assert_eq!(right_of(&told, HOUR, opener), Some(Right::Opened), "she is let in again");
    }

    #[test]
    fn it_counts_for_its_lifetime_in_the_next_process_too() {
        let (mut before, opener) = (told(), numbered(1));
        let changed = before.told(HOUR, node(1), opener, Right::Opened);
        let kept = changed.into_iter().filter_map(|(opener, entry)| Some((opener, entry?)));
        let after = Told::restored(kept, HOUR);
        let last = HOUR * 2 - Duration::from_secs(1);
        assert_eq!(after.kept(last, &opener).map(|kept| kept.age), Some(HOUR - Duration::from_secs(1)));
        assert_eq!(after.kept(HOUR * 2, &opener), None);
        let mut off = Told::restored([], Duration::ZERO);
        assert_eq!(off.told(HOUR, node(1), opener, Right::Opened), []);
        assert_eq!(off.kept(HOUR, &opener), None);
    }

    #[test]
    fn bounded_and_nobody_crowds_out_the_others() {
        let (mut told, second) = (told(), Duration::from_secs(1));
        told.told(Duration::ZERO, node(1), numbered(0), Right::Opened);
        for n in 1..MOST + 100 {
            told.told(second * u32::from(n > 1), node(2), numbered(n), Right::Opened);
        }
        assert_eq!(told.entries.len(), MOST);
        assert_eq!(right_of(&told, second, numbered(0)), Some(Right::Opened), "what another told");
        assert_eq!(right_of(&told, second, numbered(1)), None, "its own oldest");
        assert_eq!(right_of(&told, second, numbered(MOST + 99)), Some(Right::Opened));
        // What is over goes first, of whomever.
        let changed = told.told(HOUR + second, node(3), numbered(MOST + 100), Right::Opened);
        assert_eq!((changed.len(), told.entries.len()), (MOST + 1, 1));
    }
}
