use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::keyring::{Found, Keyring};
use super::waits::Waits;
use crate::image::{Registry, Repository};

/// Of several credentials that are meant for a host, so many are tried: accounts are locked for wrong ones.
pub(super) const MOST_TRIED: usize = 4;
/// Repositories that are remembered as challenged.
const MAX_CHALLENGED: usize = 1024;
/// The part of a request's time that credentials are waited for; the upstream has the rest.
const SHARE: u32 = 2;

/// The agent's own credentials for one upstream, from a file of its own, for callers that bring none.
///
/// They are looked for where the upstream wants some: programs may have to be asked, and how long these take is no
/// fault of the upstream's.
#[derive(Debug)]
pub(super) struct Own {
    keyring: Keyring,
    /// Repositories that it last gave to nobody who shows nothing.
    challenged: Mutex<HashSet<Repository>>,
    /// Requests that wait for credentials.
    waits: Waits,
}

impl Own {
    pub(super) fn new(keyring: Keyring) -> Self {
        Self { keyring, challenged: Mutex::default(), waits: Waits::default() }
    }

    /// Those that are meant for this host, of a request that began with so much time and has so much left.
    pub(super) async fn find(
        &self,
        host: &Registry,
        repository: &Repository,
        deadline: Instant,
        time: Duration,
    ) -> Found {
        let _waiting = self.waits.begin();
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / SHARE;
        self.keyring.find_until(host, repository, until, time / SHARE).await
    }

    /// Whether a request has waited for credentials since then, and not for the upstream.
    pub(super) fn was_waited_for(&self, since: Instant) -> bool {
        self.waits.were_any(since)
    }

    pub(super) fn is_challenged(&self, repository: &Repository) -> bool {
        lock(&self.challenged).contains(repository)
    }

    /// It wants to know who asks for this.
    pub(super) fn note_challenge(&self, repository: &Repository) {
        let mut challenged = lock(&self.challenged);
        if challenged.len() >= MAX_CHALLENGED {
            // Whatever is asked for again costs one more request.
            challenged.clear();
        }
        challenged.insert(repository.clone());
    }

    /// It gave this to who showed nothing.
    pub(super) fn note_openness(&self, repository: &Repository) {
        lock(&self.challenged).remove(repository);
    }
}

fn lock<T>(behind: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every statement.
    behind.lock().unwrap_or_else(PoisonError::into_inner)
}
