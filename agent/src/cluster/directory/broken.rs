//! Upstreams that gave wrong bytes.

use std::collections::HashMap;
use std::time::Duration;

use crate::image::Digest;

const REMEMBERED: Duration = Duration::from_secs(3600);
const MAX_DIGESTS: usize = 4_096;
const MAX_SOURCES: usize = 8;
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
