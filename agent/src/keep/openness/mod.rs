//! Whose what is kept is: of what containerd had before us, which registry's; and whether it is anybody's. Once for each
//! repository, and once for each blob in one that opens, a registry is asked as nobody in particular.
//!
//! What containerd holds may have come to it with credentials. So it counts as private until its registry was seen to give
//! it without any; from then on it can be given to whoever asks, also when the registry can't be asked any more. That its
//! repository opens is not enough: a blob is looked for wherever containerd calls a repository its source, which it does
//! without asking there, and wherever a manifest names it. So anybody's manifest could open anybody's layer.
//!
//! Nor is a registry's word enough, but of what it delivered: anybody may have a registry that says yes to everything.
//! Another one has to deliver all of it (`owed`). What came to containerd past us counts as delivered by the one registry
//! that is named for it, if there is one alone (`origin`).
//!
//! Where the configuration says so, each repository is asked as the agent itself too (`node`).
//!
//! A blob is named in new places for as long as it is here, and a repository may open later. So nothing is queued: what is
//! to be asked is found anew whenever something has changed, less what was answered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Catalog;
use super::fetch::Fetcher;
use crate::image::{Access, Digest};
use crate::pull::{Kind, Place};
use crate::store::Provenance;
use named::Named;
use owed::Owed;

mod named;
mod node;
mod origin;
mod owed;
#[cfg(test)]
mod tests;

/// A registry that gave no answer is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// So many are asked at a time.
const AT_ONCE: usize = 4;
/// The most repositories that are asked in a round, and remembered as silent or as unknown.
const MOST_ASKED: usize = 4096;
/// How many blobs the store is asked for at a time.
const PAGE: usize = 2048;
/// What changes together comes within a moment.
const SETTLE: Duration = Duration::from_millis(500);

/// Who asks.
pub(super) struct Prover {
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) catalog: watch::Receiver<Arc<Catalog>>,
}

/// What needn't be asked.
#[derive(Default)]
struct Asked {
    /// Repositories that gave no answer, and when.
    silent: HashMap<Place, Instant>,
    /// Those of which it couldn't be found out whether they open, and when. Whoever pulls may find it out sooner.
    unknown: HashMap<Place, Instant>,
    /// Where each blob isn't given to anybody.
    refused: HashMap<Digest, HashSet<Place>>,
    /// Blobs that were given to anybody, and when. The store knows it; should it lose that, it is found out again.
    given: HashMap<Digest, Instant>,
    /// Blobs that are some registry's, and when that was seen, for the same reason.
    delivered: HashMap<Digest, Instant>,
    /// Blobs that a registry says it gives, and has to deliver.
    owed: Owed,
    /// Repositories that were asked as the agent itself, and from when on they are asked again.
    as_node: HashMap<Place, Instant>,
}

/// What a registry says of a blob to anybody.
enum Word {
    Gives(Kind),
    Refuses,
    Silent,
}

impl Prover {
    /// Asks for what is here, until `stop`.
    pub(super) async fn prove_until(&self, stop: CancellationToken) {
        let (mut inventory, mut catalog) = (self.fetcher.inventory.clone(), self.catalog.clone());
        let mut asked = Asked::default();
        loop {
            let round = async {
                let (now, known) = (inventory.borrow_and_update().clone(), catalog.borrow_and_update().clone());
                let named = Named::of(now.as_deref(), &known);
                if let Some(now) = now.filter(|_| known.is_complete) {
                    self.find_origins(&now, &named, &mut asked).await;
                }
                self.prove(&named, &mut asked).await;
                self.ask_as_node(&named, &mut asked).await;
                let is_news = || inventory.has_changed().unwrap_or(false) || catalog.has_changed().unwrap_or(false);
                self.have_delivered(&mut asked, is_news).await;
                tokio::select! {
                    changed = inventory.changed() => if changed.is_err() { std::future::pending::<()>().await },
                    changed = catalog.changed() => if changed.is_err() { std::future::pending::<()>().await },
                    () = tokio::time::sleep(ASK_AGAIN) => {}
                }
                tokio::time::sleep(SETTLE).await;
            };
            if stop.run_until_cancelled(round).await.is_none() {
                return;
            }
        }
    }

    async fn prove(&self, named: &Named, asked: &mut Asked) {
        asked.forget(named);
        let left: HashMap<Digest, Vec<&Place>> = self.left(named, asked).collect();
        let mut todo: HashMap<&Place, Vec<Digest>> = HashMap::new();
        for digest in self.protected(left.keys().copied().collect()).await.into_keys() {
            for place in left.get(&digest).into_iter().flatten() {
                todo.entry(place).or_default().push(digest);
            }
        }
        // A map has no order: what is left out has its turn in another round.
        let todo: HashMap<_, _> = todo.into_iter().take(MOST_ASKED.saturating_sub(asked.silent.len())).collect();
        let opens = self.opens(todo.keys().copied(), named, asked).await;
        for (place, blobs) in todo.into_iter().filter(|(place, _)| opens.contains(*place)) {
            // Another place may have given some of them to anybody by now.
            let proving = self.protected(blobs).await.into_keys().map(|digest| {
                let kind = named.kinds.get(&digest).copied();
                async move { (digest, self.ask(place, digest, kind).await) }
            });
            let mut proving = stream::iter(proving).buffer_unordered(AT_ONCE);
            while let Some((digest, word)) = proving.next().await {
                match word {
                    Word::Gives(kind) if !self.is_believed(place, &digest).await => {
                        asked.owed.add(digest, place.clone(), kind);
                    }
                    Word::Gives(_) => asked.was_given(digest),
                    Word::Refuses => asked.was_refused(digest, place),
                    Word::Silent => {
                        asked.was_silent(place);
                        break;
                    }
                }
            }
        }
    }

    /// Where blobs may yet be asked for: those of which there is such a place.
    fn left<'a>(&self, named: &'a Named, asked: &Asked) -> impl Iterator<Item = (Digest, Vec<&'a Place>)> {
        let is_open = |digest: &Digest| !asked.given.contains_key(digest) && !asked.owed.holds(digest);
        let places = named.places.iter().filter(move |(digest, _)| is_open(digest));
        places.filter_map(move |(digest, places)| {
            let refused = asked.refused.get(digest);
            let is_left = |place: &&Place| {
                !refused.is_some_and(|places| places.contains(*place))
                    && !asked.silent.contains_key(*place)
                    && !self.fetcher.surveyor.ignores(&place.registry, &place.repository)
            };
            let places: Vec<&Place> = places.iter().filter(is_left).collect();
            (!places.is_empty()).then_some((*digest, places))
        })
    }

    /// Those of them that are in the store, and nobody was seen to get without credentials.
    async fn protected(&self, blobs: Vec<Digest>) -> HashMap<Digest, Provenance> {
        let mut protected = HashMap::new();
        for page in blobs.chunks(PAGE) {
            let held = self.fetcher.surveyor.store.provenances(page.to_vec()).await;
            protected.extend(held.into_iter().filter(|(_, provenance)| !provenance.is_public()));
        }
        protected
    }

    /// Which of these repositories open to anybody. One of which it isn't known is asked, by an image that it has.
    async fn opens(&self, places: impl Iterator<Item = &Place>, named: &Named, asked: &mut Asked) -> HashSet<Place> {
        let (mut opens, mut ask) = (HashSet::new(), Vec::new());
        for place in places {
            match self.fetcher.surveyor.store.openness(&place.registry, &place.repository).await {
                Some((Access::Anonymous, _)) => drop(opens.insert(place.clone())),
                Some((Access::Authorized, _)) => {}
                None if asked.unknown.contains_key(place) || asked.unknown.len() + ask.len() >= MOST_ASKED => {}
                None => ask.extend(named.targets.get(place).map(|target| (place.clone(), *target))),
            }
        }
        let asking = ask.into_iter().map(|(place, target)| async move {
            let opens = self.fetcher.pull.opens_to_anybody(&place, &target, Kind::Manifest).await;
            (place, opens)
        });
        let answers: Vec<(Place, Option<bool>)> = stream::iter(asking).buffer_unordered(AT_ONCE).collect().await;
        for (place, answer) in answers {
            if answer == Some(true) {
                opens.insert(place);
            } else {
                // One that refused is known from now on. "Not found" says nothing of the repository.
                asked.unknown.insert(place, Instant::now());
            }
        }
        opens
    }

    /// Asks whether one blob is given to anybody.
    async fn ask(&self, place: &Place, digest: Digest, kind: Option<Kind>) -> Word {
        let kinds = kind.map_or(vec![Kind::Blob, Kind::Manifest], |kind| vec![kind]);
        for kind in kinds {
            match self.fetcher.pull.opens_to_anybody(place, &digest, kind).await {
                Some(true) => return Word::Gives(kind),
                Some(false) => {}
                None => return Word::Silent,
            }
        }
        Word::Refuses
    }

    /// Whether it is anybody's by that word alone.
    async fn is_believed(&self, place: &Place, digest: &Digest) -> bool {
        let store = &self.fetcher.surveyor.store;
        store.confirmed(digest, &place.registry, &place.repository, Access::Anonymous).await
    }
}

impl Asked {
    /// What is long ago, or of what isn't here any more.
    fn forget(&mut self, named: &Named) {
        let is_fresh = |at: &Instant| at.elapsed() < ASK_AGAIN;
        self.silent.retain(|_, at| is_fresh(at));
        self.unknown.retain(|_, at| is_fresh(at));
        self.given.retain(|_, at| is_fresh(at));
        self.as_node.retain(|_, until| *until > Instant::now());
        self.refused.retain(|digest, _| named.places.contains_key(digest));
        self.owed.retain(|digest| named.places.contains_key(digest));
    }

    fn was_given(&mut self, digest: Digest) {
        self.given.insert(digest, Instant::now());
    }

    fn was_refused(&mut self, digest: Digest, place: &Place) {
        self.refused.entry(digest).or_default().insert(place.clone());
    }

    fn was_silent(&mut self, place: &Place) {
        self.silent.insert(place.clone(), Instant::now());
    }
}
