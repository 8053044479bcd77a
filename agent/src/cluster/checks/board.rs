//! Who checks which image, what was found, and who has all of it.

use std::collections::HashMap;
use std::time::Duration;

use crate::image::{Digest, ImageName, NodeId};

/// What a node says of an image holds for so long: three times the longest time until it says it again.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// What was found is told for so long. Who found it knows it for longer.
const REMEMBERED: Duration = Duration::from_secs(2 * 24 * 3600);
const MOST_IMAGES: usize = 65_536;
const MOST_NODES: usize = 8_192;
const MOST_FINDINGS: usize = 16;

/// What a node says of one of its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Which.
    pub image: ImageName,
    /// What it means there.
    pub target: Digest,
    /// Whether every blob of it is there.
    pub is_whole: bool,
    /// Whether it is to be checked, and this node could.
    pub is_checked: bool,
    /// What this node found itself.
    pub findings: Vec<Finding>,
}

/// What an upstream said of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The upstream's URL.
    pub upstream: String,
    /// What it came to.
    pub outcome: Outcome,
    /// How long ago.
    pub age: Duration,
    /// How long ago the upstream last had it.
    pub available: Option<Duration>,
    /// What the name means there.
    pub digest: Option<Digest>,
    /// More for people.
    pub remark: Option<String>,
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is there.
    Available,
    /// It isn't.
    NotFound,
    /// The agent's own credentials don't open it.
    InvalidAuth,
    /// It is private, and the agent has no credentials.
    NoCredentials,
    /// The quota is used up.
    QuotaExceeded,
    /// No answer.
    Unreachable,
}

/// What an owner says of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether the node that asks is the one to check it.
    pub is_yours: bool,
    /// How many nodes have all of what the name means to the node that asks.
    pub copies: u32,
    /// What was found last, by anybody; one for each upstream.
    pub findings: Vec<Finding>,
}

/// What is known of the images that fall to this node. Soft: who watches an image says all of it again and again.
#[derive(Debug, Default)]
pub struct Board {
    images: HashMap<ImageName, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    nodes: HashMap<NodeId, Seen>,
    checker: Option<NodeId>,
    /// Each with when it was told; its age was right then.
    findings: Vec<(Duration, Finding)>,
}

#[derive(Debug)]
struct Seen {
    at: Duration,
    target: Digest,
    is_whole: bool,
}

impl Board {
    /// A node tells of an image, and is told what others said.
    pub fn told(&mut self, now: Duration, from: NodeId, watched: Watched) -> Standing {
        let Watched { image, target, is_whole, is_checked, findings } = watched;
        if !self.images.contains_key(&image) && self.images.len() >= MOST_IMAGES {
            // Each for itself: a registry's budget holds all the same.
            return Standing { is_yours: is_checked, copies: u32::from(is_whole), findings: Vec::new() };
        }
        let entry = self.images.entry(image).or_default();
        if entry.nodes.len() < MOST_NODES || entry.nodes.contains_key(&from) {
            entry.nodes.insert(from, Seen { at: now, target, is_whole });
        }
        for finding in findings {
            entry.found(now, finding);
        }
        let is_there = |node: &NodeId| entry.nodes.get(node).is_some_and(|seen| now < seen.at + LIFE);
        if is_checked {
            entry.checker = entry.checker.filter(is_there).or(Some(from));
        } else {
            entry.checker = entry.checker.filter(|checker| *checker != from && is_there(checker));
        }
        let whole = entry.nodes.values().filter(|seen| seen.is_whole && seen.target == target && now < seen.at + LIFE);
        let (copies, is_yours) = (whole.count(), entry.checker == Some(from));
        let findings = entry.findings.iter().map(|(told, finding)| finding.older(now.saturating_sub(*told))).collect();
        Standing { is_yours, copies: u32::try_from(copies).unwrap_or(u32::MAX), findings }
    }

    /// A node has gone.
    pub fn forget(&mut self, node: NodeId) {
        for entry in self.images.values_mut() {
            entry.nodes.remove(&node);
            entry.checker = entry.checker.filter(|checker| *checker != node);
        }
    }

    /// Forgets what nobody has said for long, and what isn't this node's to know any more.
    pub fn sweep(&mut self, now: Duration, is_mine: impl Fn(&ImageName) -> bool) {
        self.images.retain(|image, entry| {
            entry.nodes.retain(|_, seen| now < seen.at + LIFE);
            entry.findings.retain(|(told, finding)| finding.age + now.saturating_sub(*told) < REMEMBERED);
            is_mine(image) && !(entry.nodes.is_empty() && entry.findings.is_empty())
        });
    }
}

impl Entry {
    fn found(&mut self, now: Duration, finding: Finding) {
        let has_room = self.findings.len() < MOST_FINDINGS;
        match self.findings.iter_mut().find(|(_, known)| known.upstream == finding.upstream) {
            Some((told, known)) => {
                let before = known.older(now.saturating_sub(*told));
                let available = [finding.available, before.available].into_iter().flatten().min();
                let newest = if finding.age <= before.age { finding } else { before };
                (*told, *known) = (now, Finding { available, ..newest });
            }
            None if has_room => self.findings.push((now, finding)),
            None => {}
        }
    }
}

impl Finding {
    /// The same, so much later.
    #[must_use]
    pub fn older(&self, by: Duration) -> Self {
        Self { age: self.age + by, available: self.available.map(|age| age + by), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::new([n; 16])
    }

    fn watched(target: &[u8], is_whole: bool) -> Watched {
        let image = "reg.test/acme/app:v1".parse().unwrap();
        Watched { image, target: Digest::of(target), is_whole, is_checked: true, findings: Vec::new() }
    }

    fn finding(outcome: Outcome, age: u64) -> Finding {
        let age = Duration::from_secs(age);
        let available = (outcome == Outcome::Available).then_some(age);
        Finding { upstream: "https://reg.test".to_owned(), outcome, age, available, digest: None, remark: None }
    }

    #[test]
    fn one_checks_and_all_are_told() {
        let (mut board, now) = (Board::default(), Duration::from_secs(100));
        assert!(board.told(now, node(1), watched(b"a", true)).is_yours);
        let second = board.told(now, node(2), watched(b"a", true));
        assert_eq!((second.is_yours, second.copies), (false, 2));
        let found = Watched { findings: vec![finding(Outcome::Available, 5)], ..watched(b"a", false) };
        assert_eq!(board.told(now, node(1), found).copies, 1);
        let later = now + Duration::from_secs(10);
        let told = board.told(later, node(2), watched(b"b", true));
        assert_eq!(told.findings, [finding(Outcome::Available, 15)]);
        assert_eq!(told.copies, 1, "of what the name means there");
        // An older word doesn't take a younger one's place, nor does a younger one make forget when it was there.
        let old = Watched { findings: vec![finding(Outcome::NotFound, 60)], ..watched(b"a", false) };
        assert_eq!(board.told(later, node(3), old).findings, [finding(Outcome::Available, 15)]);
        let new = Watched { findings: vec![finding(Outcome::NotFound, 1)], ..watched(b"a", false) };
        let known = board.told(later, node(3), new).findings;
        assert_eq!((known[0].outcome, known[0].available), (Outcome::NotFound, Some(Duration::from_secs(15))));
    }

    #[test]
    fn another_checks_when_the_first_has_gone_or_wants_no_more() {
        let (mut board, now) = (Board::default(), Duration::from_secs(100));
        assert!(board.told(now, node(1), watched(b"a", true)).is_yours);
        board.forget(node(1));
        assert!(board.told(now, node(2), watched(b"a", true)).is_yours);
        assert!(board.told(now + LIFE, node(1), watched(b"a", true)).is_yours, "nothing was heard of it for long");
        let unused = Watched { is_checked: false, ..watched(b"a", true) };
        assert!(!board.told(now + LIFE, node(1), unused).is_yours);
        assert!(board.told(now + LIFE, node(3), watched(b"a", true)).is_yours);
        board.sweep(now + 3 * LIFE, |_| true);
        assert!(board.images.is_empty());
    }
}
