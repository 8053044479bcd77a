//! Whether what was adopted is anybody's: once for each repository, and once for each blob in one that opens, a registry is
//! asked as nobody in particular.
//!
//! What containerd holds may have come to it with credentials. So it counts as private until its registry was seen to give
//! it without any; from then on it can be given to whoever asks, also when the registry can't be asked any more. That its
//! repository opens is not enough: containerd calls each repository a blob's source whose manifest names it, also where it
//! had the blob already and never asked for it there. So anybody's manifest could open anybody's layer.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::survey::Surveyor;
use crate::containerd::inventory::Inventory;
use crate::image::{Access, Digest};
use crate::pull::{Kind, Place, Pull};

/// A registry that gave no answer is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// So many are asked at a time.
const AT_ONCE: usize = 4;
/// The most repositories that are remembered as asked.
const MOST_ASKED: usize = 4096;

/// Blobs that were adopted before anybody knew whether their repositories open to anybody.
#[derive(Debug, Clone, Default)]
pub(super) struct Unproven {
    blobs: Arc<Mutex<HashMap<Place, HashSet<Digest>>>>,
    more: Arc<Notify>,
}

impl Unproven {
    /// One more, of these repositories.
    pub(super) fn note(&self, digest: Digest, places: Vec<Place>) {
        if places.is_empty() {
            return;
        }
        let mut blobs = self.lock();
        for place in places {
            blobs.entry(place).or_default().insert(digest);
        }
        self.more.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, HashSet<Digest>>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who asks.
pub(super) struct Prover {
    pub(super) surveyor: Arc<Surveyor>,
    pub(super) pull: Pull,
    pub(super) inventory: watch::Receiver<Option<Arc<Inventory>>>,
    pub(super) unproven: Unproven,
}

impl Prover {
    /// Asks for what is adopted, until `stop`.
    pub(super) async fn prove_until(&self, stop: CancellationToken) {
        let mut inventory = self.inventory.clone();
        let mut asked: HashMap<Place, Instant> = HashMap::new();
        loop {
            let round = async {
                let now = inventory.borrow_and_update().clone();
                if let Some(now) = now {
                    self.prove(&now, &mut asked).await;
                }
                tokio::select! {
                    changed = inventory.changed() => if changed.is_err() { std::future::pending::<()>().await },
                    () = self.unproven.more.notified() => {}
                    () = tokio::time::sleep(ASK_AGAIN) => {}
                }
                // What is adopted with it comes within a moment.
                tokio::time::sleep(Duration::from_millis(500)).await;
            };
            if stop.run_until_cancelled(round).await.is_none() {
                return;
            }
        }
    }

    async fn prove(&self, now: &Inventory, asked: &mut HashMap<Place, Instant>) {
        asked.retain(|_, at| at.elapsed() < ASK_AGAIN);
        let mut ask: HashMap<Place, Digest> = HashMap::new();
        for image in &now.images {
            for name in image.names.iter().filter(|name| !self.surveyor.is_ignored(name)) {
                let place = Place { registry: name.registry.clone(), repository: name.repository.clone() };
                if !asked.contains_key(&place) && self.openness(&place).await.is_none() {
                    ask.insert(place, image.target);
                }
            }
        }
        for place in ask.keys().take(MOST_ASKED.saturating_sub(asked.len())) {
            asked.insert(place.clone(), Instant::now());
            // With what an earlier process adopted, and got no answer for.
            let is_from =
                |(registry, repository): &(_, _)| *registry == place.registry && *repository == place.repository;
            let blobs = now.contents.values().filter(|content| content.sources.iter().any(is_from));
            self.unproven.lock().entry(place.clone()).or_default().extend(blobs.map(|content| content.digest));
        }
        let answers = stream::iter(ask).map(|(place, target)| async move {
            let opens = self.pull.opens_to_anybody(&place, &target, Kind::Manifest).await;
            (place, opens)
        });
        let answers: HashMap<Place, Option<bool>> = answers.buffer_unordered(AT_ONCE).collect().await;
        let waiting: Vec<Place> = self.unproven.lock().keys().cloned().collect();
        for place in waiting {
            let said = answers.get(&place).copied().flatten();
            let opens = match said {
                Some(opens) => Some(opens),
                None => self.openness(&place).await.map(|access| access == Access::Anonymous),
            };
            let Some(opens) = opens else { continue };
            let blobs = self.unproven.lock().remove(&place).unwrap_or_default();
            if opens {
                let place = &place;
                let proving =
                    blobs.into_iter().map(|digest| async move { (digest, self.prove_one(place, digest).await) });
                let proven: Vec<(Digest, bool)> = stream::iter(proving).buffer_unordered(AT_ONCE).collect().await;
                let left: HashSet<Digest> =
                    proven.into_iter().filter(|(_, said)| !said).map(|(left, _)| left).collect();
                if !left.is_empty() {
                    self.unproven.lock().entry(place.clone()).or_default().extend(left);
                }
            }
        }
    }

    /// Asks for one blob, unless it is known to be anybody's; false: there was no answer.
    async fn prove_one(&self, place: &Place, digest: Digest) -> bool {
        let store = &self.surveyor.store;
        if store.blob(&digest).await.is_some_and(|blob| blob.provenance().is_public()) {
            return true;
        }
        for kind in [Kind::Blob, Kind::Manifest] {
            match self.pull.opens_to_anybody(place, &digest, kind).await {
                Some(true) => {
                    store.delivered(&digest, &place.registry, &place.repository, Access::Anonymous).await;
                    return true;
                }
                Some(false) => {}
                None => return false,
            }
        }
        true
    }

    async fn openness(&self, place: &Place) -> Option<Access> {
        let known = self.surveyor.store.openness(&place.registry, &place.repository).await;
        known.map(|(access, _)| access)
    }
}
