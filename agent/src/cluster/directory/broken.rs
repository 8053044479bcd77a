//! Upstreams that gave wrong bytes: by the digest that they broke, and by their names.

use std::collections::HashMap;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::cluster::Bucket;
use crate::image::Digest;

const REMEMBERED: Duration = Duration::from_secs(3600);
const MAX_DIGESTS: usize = 4_096;
const MAX_SOURCES: usize = 8;
const MAX_SUSPECTS: usize = 4_096;
/// Longer names aren't kept: they come from other nodes.
const MAX_NAME: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Broken(HashMap<Digest, Vec<(String, Duration)>>);

impl Broken {
    pub(super) fn told(&mut self, now: Duration, digest: &Digest, sources: &[String]) {
        if sources.is_empty() || (self.0.len() >= MAX_DIGESTS && !self.0.contains_key(digest)) {
            return;
        }
        let known = self.0.entry(*digest).or_default();
        for source in sources.iter().filter(|source| source.len() <= MAX_NAME) {
            known.retain(|(name, _)| name != source);
            if known.len() < MAX_SOURCES {
                known.push((source.clone(), now + REMEMBERED));
            }
        }
    }

    pub(super) fn of(&self, now: Duration, digest: &Digest) -> Vec<String> {
        let known = self.0.get(digest).map_or(&[][..], Vec::as_slice);
        known.iter().filter(|(_, until)| now < *until).map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn sweep(&mut self, now: Duration) {
        self.0.retain(|_, known| {
            known.retain(|(_, until)| now < *until);
            !known.is_empty()
        });
    }
}

/// The bucket that an upstream's name falls into. The same on every node and in every version.
#[must_use]
pub fn bucket_of_upstream(name: &str) -> Bucket {
    Bucket::of_hash(&Sha256::new().chain_update("upstream\0").chain_update(name).finalize().into())
}

/// Upstreams that broke a digest, whichever: each may break another one next, for nodes that never asked for that one.
#[derive(Debug, Default)]
pub(super) struct Suspects(HashMap<String, Duration>);

impl Suspects {
    /// This one did. Of too many, the one that was told of longest ago goes.
    pub(super) fn broke(&mut self, now: Duration, upstream: &str) {
        if upstream.len() > MAX_NAME {
            return;
        }
        if self.0.len() >= MAX_SUSPECTS
            && !self.0.contains_key(upstream)
            && let Some(oldest) = self.0.iter().min_by_key(|(_, until)| **until).map(|(name, _)| name.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(upstream.to_owned(), now + REMEMBERED);
    }

    pub(super) fn has(&self, now: Duration, upstream: &str) -> bool {
        self.0.get(upstream).is_some_and(|until| now < *until)
    }

    pub(super) fn sweep(&mut self, now: Duration) {
        self.0.retain(|_, until| now < *until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspects_are_bounded_and_forgotten_after_an_hour() {
        let mut suspects = Suspects::default();
        for n in 0..=MAX_SUSPECTS {
            suspects.broke(Duration::from_secs(n as u64), &n.to_string());
        }
        let now = Duration::from_secs(MAX_SUSPECTS as u64);
        assert!(!suspects.has(Duration::ZERO, "0"), "the oldest made room");
        assert!(suspects.has(now, "1000") && !suspects.has(now, "400"));
        suspects.sweep(now);
        assert!(suspects.has(now, "1000"));
        suspects.broke(now, &"x".repeat(MAX_NAME + 1));
        assert!(suspects.0.len() <= MAX_SUSPECTS);
    }
}
