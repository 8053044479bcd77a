//! Wrong bytes: who sent them, how far they reached, and what follows from it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bounded::insert;
use crate::image::Digest;
use crate::upstream::Upstream;

/// How long a source stays suspect.
const SUSPECT_FOR: Duration = Duration::from_secs(3600);
/// How long a reply that was wrong may not be continued: containerd's own retries come within seconds.
const POISONED_FOR: Duration = Duration::from_secs(60);
/// Of an upstream that nothing was heard of, the cluster is asked again after so long.
const HEARD_FOR: Duration = Duration::from_secs(10);
/// The most entries of each kind; beyond, the oldest goes.
const BOUND: usize = 1024;

/// What is remembered of wrong bytes: who sent them, and how far they reached into containerd.
#[derive(Default)]
pub(super) struct Blame(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    suspects: HashMap<String, Instant>,
    /// Those that others say sent them wrong bytes, of whatever blob; and those that others were asked about.
    said: HashMap<String, Instant>,
    asked: HashMap<String, Instant>,
    broke: HashMap<(String, Digest), Instant>,
    /// Broken by several, of whom one is to blame, and nobody knows who.
    unclear: HashMap<Digest, Instant>,
    /// What others say of who broke it was taken for an explanation.
    believed: HashMap<Digest, Instant>,
    poisoned: HashMap<Digest, (u64, Instant)>,
}

impl Blame {
    /// `upstream` delivered bytes that broke `digest`.
    pub(super) fn broke(&self, upstream: &str, digest: Digest) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        insert(&mut memory.suspects, BOUND, upstream.to_owned(), now, |at| *at);
        insert(&mut memory.broke, BOUND, (upstream.to_owned(), digest), now, |at| *at);
    }

    /// Whether a blob from `upstream` has to be whole and verified before its first byte goes out.
    pub(super) fn is_suspect(&self, upstream: &str) -> bool {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.suspects.get(upstream).is_some_and(|at| at.elapsed() < SUSPECT_FOR)
    }

    /// Whether it is time to ask others about `upstream`. It is taken for asked then.
    pub(super) fn is_to_be_asked_about(&self, upstream: &str) -> bool {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.asked.get(upstream).is_some_and(|at| at.elapsed() < HEARD_FOR) {
            return false;
        }
        insert(&mut memory.asked, BOUND, upstream.to_owned(), Instant::now(), |at| *at);
        true
    }

    /// What others say: `upstream` sent somebody wrong bytes of late, or not.
    pub(super) fn is_said(&self, upstream: &str, broke: bool) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if broke {
            insert(&mut memory.said, BOUND, upstream.to_owned(), Instant::now(), |at| *at);
        } else {
            memory.said.remove(upstream);
        }
    }

    /// Whether others say so. Their word may cost time, and no more.
    pub(super) fn is_said_to_break(&self, upstream: &str) -> bool {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.said.get(upstream).is_some_and(|at| at.elapsed() < SUSPECT_FOR)
    }

    /// Whether `upstream` has broken this very blob: it is asked last.
    pub(super) fn has_broken(&self, upstream: &str, digest: &Digest) -> bool {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.broke.get(&(upstream.to_owned(), *digest)).is_some_and(|at| at.elapsed() < SUSPECT_FOR)
    }

    /// Others say who it was that broke `digest`, and nothing here contradicts. Whether that is believed: once, and then
    /// it isn't unclear any more. Who is told wrongly fails once more at the most, and finds out by itself.
    pub(super) fn believes_others(&self, digest: Digest) -> bool {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.believed.get(&digest).is_some_and(|at| at.elapsed() < SUSPECT_FOR) {
            return false;
        }
        insert(&mut memory.believed, BOUND, digest, Instant::now(), |at| *at);
        memory.unclear.remove(&digest);
        true
    }

    /// What `sources` delivered together broke `digest`.
    pub(super) fn broken_by(&self, sources: &[Arc<Upstream>], digest: Digest) {
        match sources {
            [one] => self.broke(one.name(), digest),
            _ => self.is_unclear(digest),
        }
    }

    /// Several delivered bytes that together broke `digest`. Who of them it was is found out by taking it from one alone.
    pub(super) fn is_unclear(&self, digest: Digest) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        insert(&mut memory.unclear, BOUND, digest, Instant::now(), |at| *at);
    }

    pub(super) fn needs_one_source(&self, digest: &Digest) -> bool {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.unclear.get(digest).is_some_and(|at| at.elapsed() < SUSPECT_FOR)
    }

    /// A caller has the first `reached` bytes of a blob, and they are wrong.
    pub(super) fn poisoned(&self, digest: Digest, reached: u64) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = memory.poisoned.get(&digest).map_or(reached, |&(before, _)| before.max(reached));
        insert(&mut memory.poisoned, BOUND, digest, (reached, Instant::now()), |(_, at)| *at);
    }

    /// Whether a range from `start` would continue wrong bytes. Who starts at 0 starts clean; the memory stays, for
    /// others.
    pub(super) fn continues_poison(&self, digest: &Digest, start: u64) -> bool {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        start > 0
            && memory.poisoned.get(digest).is_some_and(|(reached, at)| start <= *reached && at.elapsed() < POISONED_FOR)
    }

    /// A caller has got all of a blob, proven, or has begun anew: no wrong beginning of it is left to be continued.
    pub(super) fn lifted(&self, digest: &Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).poisoned.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poisoned_reply_is_not_continued_until_somebody_has_all_of_it() {
        let blame = Blame::default();
        let digest = Digest::of(b"x");
        blame.poisoned(digest, 100);
        assert!(blame.continues_poison(&digest, 100));
        assert!(blame.continues_poison(&digest, 40));
        assert!(!blame.continues_poison(&digest, 101), "bytes that we never sent");
        assert!(!blame.continues_poison(&digest, 0));
        assert!(blame.continues_poison(&digest, 100), "somebody else began anew");
        blame.poisoned(digest, 50);
        assert!(blame.continues_poison(&digest, 100), "the larger holds");
        blame.lifted(&digest);
        assert!(!blame.continues_poison(&digest, 100));
    }

    #[test]
    fn what_others_say_is_believed_once() {
        let blame = Blame::default();
        let (digest, other) = (Digest::of(b"x"), Digest::of(b"y"));
        blame.is_unclear(digest);
        blame.is_unclear(other);
        assert!(blame.believes_others(digest));
        assert!(!blame.needs_one_source(&digest));
        assert!(blame.needs_one_source(&other), "of which they said nothing");
        blame.is_unclear(digest);
        assert!(!blame.believes_others(digest));
        assert!(blame.needs_one_source(&digest), "it is found out here");
    }

    #[test]
    fn others_are_asked_now_and_then_and_their_last_word_counts() {
        let blame = Blame::default();
        assert!(blame.is_to_be_asked_about("a") && blame.is_to_be_asked_about("b"));
        assert!(!blame.is_to_be_asked_about("a"));
        blame.is_said("a", true);
        assert!(blame.is_said_to_break("a") && !blame.is_said_to_break("b"));
        assert!(!blame.is_suspect("a"), "it is no more than their word");
        blame.is_said("a", false);
        assert!(!blame.is_said_to_break("a"));
    }

    #[test]
    fn memory_is_bounded() {
        let blame = Blame::default();
        for i in 0..BOUND + 10 {
            blame.broke(&i.to_string(), Digest::of(b"x"));
        }
        assert!(!blame.is_suspect("0"));
        assert!(blame.is_suspect(&(BOUND + 9).to_string()));
        assert_eq!(blame.0.lock().unwrap().suspects.len(), BOUND);
    }
}
