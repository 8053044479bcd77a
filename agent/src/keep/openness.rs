//! Whether what is kept is anybody's: once for each repository, and once for each blob in one that opens, a registry is asked
//! as nobody in particular.
//!
//! What containerd holds may have come to it with credentials. So it counts as private until its registry was seen to give
//! it without any; from then on it can be given to whoever asks, also when the registry can't be asked any more. That its
//! repository opens is not enough: a blob is looked for wherever containerd calls a repository its source, which it does
//! without asking there, and wherever a manifest names it. So anybody's manifest could open anybody's layer.
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

use super::survey::Surveyor;
use super::{Catalog, Held};
use crate::containerd::inventory::Inventory;
use crate::image::{Access, Digest, Registry, Repository};
use crate::pull::{Kind, Place, Pull};

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
    pub(super) surveyor: Arc<Surveyor>,
    pub(super) pull: Pull,
    pub(super) inventory: watch::Receiver<Option<Arc<Inventory>>>,
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
}

/// Where blobs may be asked for.
#[derive(Default)]
struct Named {
    places: HashMap<Digest, HashSet<Place>>,
    /// By which requests; both where nobody says.
    kinds: HashMap<Digest, Kind>,
    /// An image of each repository.
    targets: HashMap<Place, Digest>,
}

impl Prover {
    /// Asks for what is here, until `stop`.
    pub(super) async fn prove_until(&self, stop: CancellationToken) {
        let (mut inventory, mut catalog) = (self.inventory.clone(), self.catalog.clone());
        let mut asked = Asked::default();
        loop {
            let round = async {
                let (now, known) = (inventory.borrow_and_update().clone(), catalog.borrow_and_update().clone());
                self.prove(&Named::of(now.as_deref(), &known), &mut asked).await;
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
        asked.silent.retain(|_, at| at.elapsed() < ASK_AGAIN);
        asked.unknown.retain(|_, at| at.elapsed() < ASK_AGAIN);
        asked.refused.retain(|digest, _| named.places.contains_key(digest));
        asked.given.retain(|_, at| at.elapsed() < ASK_AGAIN);
        let left: HashMap<Digest, Vec<&Place>> = self.left(named, asked).collect();
        let mut todo: HashMap<&Place, Vec<Digest>> = HashMap::new();
        for digest in self.protected(left.keys().copied().collect()).await {
            for place in left.get(&digest).into_iter().flatten() {
                todo.entry(place).or_default().push(digest);
            }
        }
        // A map has no order: what is left out has its turn in another round.
        let todo: HashMap<_, _> = todo.into_iter().take(MOST_ASKED.saturating_sub(asked.silent.len())).collect();
        let opens = self.opens(todo.keys().copied(), named, asked).await;
        for (place, blobs) in todo.into_iter().filter(|(place, _)| opens.contains(*place)) {
            // Another place may have given some of them to anybody by now.
            let proving = self.protected(blobs).await.into_iter().map(|digest| {
                let kind = named.kinds.get(&digest).copied();
                async move { (digest, self.prove_one(place, digest, kind).await) }
            });
            let mut proving = stream::iter(proving).buffer_unordered(AT_ONCE);
            while let Some((digest, is_given)) = proving.next().await {
                match is_given {
                    Some(true) => drop(asked.given.insert(digest, Instant::now())),
                    Some(false) => drop(asked.refused.entry(digest).or_default().insert(place.clone())),
                    None => {
                        asked.silent.insert(place.clone(), Instant::now());
                        break;
                    }
                }
            }
        }
    }

    /// Where blobs may yet be asked for: those of which there is such a place.
    fn left<'a>(&self, named: &'a Named, asked: &Asked) -> impl Iterator<Item = (Digest, Vec<&'a Place>)> {
        let places = named.places.iter().filter(|(digest, _)| !asked.given.contains_key(*digest));
        places.filter_map(move |(digest, places)| {
            let refused = asked.refused.get(digest);
            let is_left = |place: &&Place| {
                !refused.is_some_and(|places| places.contains(*place))
                    && !asked.silent.contains_key(*place)
                    && !self.surveyor.ignores(&place.registry, &place.repository)
            };
            let places: Vec<&Place> = places.iter().filter(is_left).collect();
            (!places.is_empty()).then_some((*digest, places))
        })
    }

    /// Those of them that are in the store, and nobody was seen to get without credentials.
    async fn protected(&self, blobs: Vec<Digest>) -> Vec<Digest> {
        let mut protected = Vec::new();
        for page in blobs.chunks(PAGE) {
            let holdings = self.surveyor.store.holdings(page.to_vec()).await;
            let found = page.iter().zip(holdings);
            let is_protected = found.filter(|(_, holding)| holding.is_some_and(|holding| !holding.is_public));
            protected.extend(is_protected.map(|(digest, _)| *digest));
        }
        protected
    }

    /// Which of these repositories open to anybody. One of which it isn't known is asked, by an image that it has.
    async fn opens(&self, places: impl Iterator<Item = &Place>, named: &Named, asked: &mut Asked) -> HashSet<Place> {
        let (mut opens, mut ask) = (HashSet::new(), Vec::new());
        for place in places {
            match self.surveyor.store.openness(&place.registry, &place.repository).await {
                Some((Access::Anonymous, _)) => drop(opens.insert(place.clone())),
                Some((Access::Authorized, _)) => {}
                None if asked.unknown.contains_key(place) || asked.unknown.len() + ask.len() >= MOST_ASKED => {}
                None => ask.extend(named.targets.get(place).map(|target| (place.clone(), *target))),
            }
        }
        let asking = ask.into_iter().map(|(place, target)| async move {
            let opens = self.pull.opens_to_anybody(&place, &target, Kind::Manifest).await;
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

    /// Asks for one blob, whether it is given to anybody. `None`: there was no answer.
    async fn prove_one(&self, place: &Place, digest: Digest, kind: Option<Kind>) -> Option<bool> {
        let kinds = kind.map_or(vec![Kind::Blob, Kind::Manifest], |kind| vec![kind]);
        for kind in kinds {
            match self.pull.opens_to_anybody(place, &digest, kind).await {
                Some(true) => {
                    let store = &self.surveyor.store;
                    store.delivered(&digest, &place.registry, &place.repository, Access::Anonymous).await;
                    return Some(true);
                }
                Some(false) => {}
                None => return None,
            }
        }
        Some(false)
    }
}

impl Named {
    /// By what containerd says, and by the images that are known.
    fn of(inventory: Option<&Inventory>, catalog: &Catalog) -> Self {
        let mut named = Self::default();
        for content in inventory.into_iter().flat_map(|inventory| inventory.contents.values()) {
            named.places.entry(content.digest).or_default().extend(content.sources.iter().map(source));
        }
        for image in inventory.into_iter().flat_map(|inventory| &inventory.images) {
            let sources = named.places.get(&image.target).into_iter().flatten().cloned();
            let places: Vec<Place> = sources.chain(image.names.iter().map(Place::from)).collect();
            named.targets.extend(places.into_iter().map(|place| (place, image.target)));
            named.kinds.insert(image.target, Kind::Manifest);
        }
        for known in &catalog.images {
            let place = Place::from(&known.name);
            named.targets.entry(place.clone()).or_insert(known.target);
            for part in known.parts.iter().filter(|part| part.held != Held::Missing) {
                let is_manifest = part.digest == known.target || part.media_type.is_manifest();
                named.kinds.insert(part.digest, if is_manifest { Kind::Manifest } else { Kind::Blob });
                named.places.entry(part.digest).or_default().insert(place.clone());
            }
        }
        named
    }
}

fn source((registry, repository): &(Registry, Repository)) -> Place {
    Place { registry: registry.clone(), repository: repository.clone() }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::config::{Config, RegistryConfig, UpstreamConfig};
    use crate::image::MediaType;
    use crate::peers::Membership;
    use crate::store::{Options, Reason, Store};
    use crate::upstream::Upstreams;
    use crate::upstream::tests::server::{Act, Server};

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const OPENS: &str = "200 OK";
    const REFUSES: &str = "403 No";
    const IS_TIRED: &str = "429 Enough\r\nRetry-After: 600";

    /// An upstream that answers every question by one status.
    struct Answering {
        server: Server,
        says: Arc<Mutex<&'static str>>,
    }

    impl Answering {
        async fn that(says: &'static str) -> Self {
            let says = Arc::new(Mutex::new(says));
            let now = Arc::clone(&says);
            let server = Server::plain(move |_| {
                let head = format!(
                    "HTTP/1.1 {}\r\nContent-Type: {MANIFEST}\r\nContent-Length: 0\r\n\r\n",
                    now.lock().unwrap()
                );
                vec![Act::Send(head.into_bytes())]
            })
            .await;
            Self { server, says }
        }

        fn now(&self, says: &'static str) {
            *self.says.lock().unwrap() = says;
        }

        fn heads(&self) -> usize {
            self.server.count("HEAD ")
        }
    }

    /// A manifest that came to credentials, of a repository of which nothing else is known.
    struct Scene {
        prover: Prover,
        named: Named,
        place: Place,
        manifest: Bytes,
        stop: CancellationToken,
        _dir: tempfile::TempDir,
    }

    impl Scene {
        async fn of(upstreams: &[&Answering]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let upstream = |asked: &&Answering| UpstreamConfig {
                insecure: true,
                ..UpstreamConfig::new(asked.server.url().parse().unwrap())
            };
            let mut config = Config::default();
            config.cache.dir = dir.path().to_owned();
            config.registries = vec![RegistryConfig {
                name: "r.test".parse().unwrap(),
                upstreams: upstreams.iter().map(upstream).collect(),
            }];
            let store = Store::open(Options::from(&config.cache)).unwrap();
            let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
            let upstreams = Arc::new(Upstreams::new(&config).unwrap());
            let pull = Pull::new(&config, store.clone(), upstreams, None, Membership::off(), tasks, stop.clone());
            let surveyor = Arc::new(Surveyor::new(store, config.cache, None).await);
            let (inventory, catalog) = (watch::channel(None).1, watch::channel(Arc::default()).1);
            let manifest = Bytes::from_static(b"{}");
            let place = Place { registry: "r.test".parse().unwrap(), repository: "acme/app".parse().unwrap() };
            let digest = Digest::of(&manifest);
            let named = Named {
                places: HashMap::from([(digest, HashSet::from([place.clone()]))]),
                kinds: HashMap::from([(digest, Kind::Manifest)]),
                targets: HashMap::from([(place.clone(), digest)]),
            };
            let prover = Prover { surveyor, pull, inventory, catalog };
            let scene = Self { prover, named, place, manifest, stop, _dir: dir };
            scene.put().await;
            scene
        }

        fn digest(&self) -> Digest {
            Digest::of(&self.manifest)
        }

        async fn put(&self) {
            let Place { registry, repository } = &self.place;
            let (store, digest, media_type) = (&self.prover.surveyor.store, self.digest(), MediaType::new(MANIFEST));
            let content = self.manifest.clone();
            store.put(&digest, content, media_type, registry, repository, Access::Authorized).await.unwrap();
            assert!(!self.is_public().await);
        }

        async fn is_public(&self) -> bool {
            self.prover.protected(vec![self.digest()]).await.is_empty()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    #[tokio::test]
    async fn one_that_rests_is_left_alone() {
        let only = Answering::that(IS_TIRED).await;
        let scene = Scene::of(&[&only]).await;
        let mut asked = Asked::default();
        scene.prover.prove(&scene.named, &mut asked).await;
        assert_eq!(only.heads(), 1, "nobody had said that it is tired");
        only.now(OPENS);
        // Not for being known as silent.
        scene.prover.prove(&scene.named, &mut Asked::default()).await;
        assert_eq!((only.heads(), scene.is_public().await), (1, false));

        let rested = Answering::that(OPENS).await;
        let scene = Scene::of(&[&rested]).await;
        scene.prover.prove(&scene.named, &mut Asked::default()).await;
        assert!(scene.is_public().await && rested.heads() > 0);
    }

    #[tokio::test]
    async fn while_one_rests_another_may_open_and_none_may_close() {
        let (first, second) = (Answering::that(IS_TIRED).await, Answering::that(REFUSES).await);
        let scene = Scene::of(&[&first, &second]).await;
        let opens = async || scene.prover.pull.opens_to_anybody(&scene.place, &scene.digest(), Kind::Manifest).await;
        let _tires = opens().await;
        assert_eq!(opens().await, None, "the first may open");
        second.now(OPENS);
        scene.prover.prove(&scene.named, &mut Asked::default()).await;
        assert!(scene.is_public().await, "nor was it taken for private");
        assert_eq!(first.heads(), 1);
    }

    #[tokio::test]
    async fn a_mark_that_is_lost_is_found_again() {
        let only = Answering::that(OPENS).await;
        let scene = Scene::of(&[&only]).await;
        let mut asked = Asked::default();
        scene.prover.prove(&scene.named, &mut asked).await;
        assert!(scene.is_public().await);

        scene.prover.surveyor.store.drop_blobs(vec![scene.digest()], Reason::MaxBytes).await;
        scene.put().await;
        let before = only.heads();
        scene.prover.prove(&scene.named, &mut asked).await;
        assert_eq!(only.heads(), before, "not at once");
        let long_ago = Instant::now().checked_sub(ASK_AGAIN).expect("this machine has run for so long");
        asked.given.values_mut().for_each(|at| *at = long_ago);
        scene.prover.prove(&scene.named, &mut asked).await;
        assert!(scene.is_public().await);
    }
}
