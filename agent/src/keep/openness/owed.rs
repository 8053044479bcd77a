use std::collections::HashMap;

use super::{Asked, Prover};
use crate::image::Digest;
use crate::keep::fetch::Unproven;
use crate::pull::{Kind, Place};

/// Blobs that a registry says it gives to anybody, and never delivered here. One place for each at a time.
#[derive(Default)]
pub(super) struct Owed(HashMap<Digest, (Place, Kind)>);

impl Owed {
    pub(super) fn add(&mut self, digest: Digest, place: Place, kind: Kind) {
        self.0.entry(digest).or_insert((place, kind));
    }

    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.0.contains_key(digest)
    }

    pub(super) fn retain(&mut self, is_here: impl Fn(&Digest) -> bool) {
        self.0.retain(|digest, _| is_here(digest));
    }

    fn next(&mut self) -> Option<(Digest, Place, Kind)> {
        let digest = *self.0.keys().next()?;
        self.0.remove(&digest).map(|(place, kind)| (digest, place, kind))
    }
}

impl Prover {
    /// Has what is owed delivered, at the pace of the background, one after the other; ends early when there is news.
    pub(super) async fn have_delivered(&self, asked: &mut Asked, is_news: impl Fn() -> bool) {
        while !is_news() {
            let Some((digest, place, kind)) = asked.owed.next() else { return };
            // Another place may have given it to anybody by now.
            if self.protected(vec![digest]).await.is_empty() {
                continue;
            }
            match self.fetcher.prove(&place, digest, kind).await {
                Ok(()) => asked.was_given(digest),
                Err(Unproven::Refused) => asked.was_refused(digest, &place),
                Err(Unproven::Unanswered) => asked.was_silent(&place),
            }
        }
    }
}
