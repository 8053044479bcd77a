use std::sync::Mutex;

use bytes::Bytes;
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::{Config, Percent, RegistryConfig, UpstreamConfig};
use crate::containerd::client::Content;
use crate::containerd::inventory::Inventory;
use crate::image::MediaType;
use crate::keep::adopt::Spoilt;
use crate::keep::metrics::Metrics;
use crate::keep::survey::Surveyor;
use crate::pull::{Pace, Pull};
use crate::store::{Found, Options, Reason, Store};
use crate::upstream::Upstreams;
use crate::upstream::tests::server::{Act, Server};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OPENS: &str = "200 OK";
const REFUSES: &str = "403 No";
const IS_TIRED: &str = "429 Enough\r\nRetry-After: 600";

const EVIL: &str = "evil.test";

/// An upstream that answers every question by one status.
struct Answering {
    server: Server,
    says: Arc<Mutex<&'static str>>,
}

impl Answering {
    async fn that(says: &'static str) -> Self {
        Self::that_gives(says, b"").await
    }

    /// One that says so to a HEAD, and gives this to a GET, or says that it has nothing.
    async fn that_gives(says: &'static str, body: &'static [u8]) -> Self {
        let says = Arc::new(Mutex::new(says));
        let now = Arc::clone(&says);
        let server = Server::plain(move |request| {
            let (status, body) = match () {
                () if request.starts_with("HEAD ") => (*now.lock().unwrap(), &b""[..]),
                () if body.is_empty() => ("404 Not Found", body),
                () => ("200 OK", body),
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: {MANIFEST}\r\nContent-Length: {length}\r\n\r\n");
            vec![Act::Send([head.as_bytes(), body].concat())]
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
    dir: tempfile::TempDir,
}

impl Scene {
    async fn of(upstreams: &[&Answering]) -> Self {
        Self::beside(upstreams, None).await
    }

    /// The same, and another registry.
    async fn beside(upstreams: &[&Answering], other: Option<&Answering>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let upstream = |asked: &&Answering| UpstreamConfig {
            insecure: true,
            ..UpstreamConfig::new(asked.server.url().parse().unwrap())
        };
        let mut config = Config::default();
        config.cache.dir = dir.path().to_owned();
        // The disk of a test machine may well be fuller than the default allows.
        config.cache.max_disk_percent = Percent::new(99).unwrap();
        let registry = |name: &str, upstreams: &[&Answering]| {
            RegistryConfig::new(name.parse().unwrap(), upstreams.iter().map(upstream).collect())
        };
        config.registries = vec![registry("r.test", upstreams)];
        config.registries.extend(other.map(|other| registry(EVIL, &[other])));
        let store = Store::open(Options::from(&config.cache)).unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let upstreams = Arc::new(Upstreams::new(&config).unwrap());
        let pull = Pull::new(&config, store.clone(), Arc::clone(&upstreams), None, None, tasks, stop.clone());
        let pace = Arc::new(Pace::new(config.cache.background_rate));
        let surveyor = Arc::new(Surveyor::new(store, config.cache, None).await);
        let (inventory, catalog) = (watch::channel(None).1, watch::channel(Arc::default()).1);
        let (spoilt, metrics) = (Spoilt::default(), Metrics::default());
        let fetcher = Arc::new(Fetcher { surveyor, pull, upstreams, inventory, spoilt, metrics, pace });
        let manifest = Bytes::from_static(b"{}");
        let place = Place { registry: "r.test".parse().unwrap(), repository: "acme/app".parse().unwrap() };
        let digest = Digest::of(&manifest);
        let named = Named {
            places: HashMap::from([(digest, HashSet::from([place.clone()]))]),
            kinds: HashMap::from([(digest, Kind::Manifest)]),
            targets: HashMap::from([(place.clone(), digest)]),
        };
        let prover = Prover { fetcher, catalog };
        let scene = Self { prover, named, place, manifest, stop, dir };
        scene.put().await;
        scene
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    async fn put(&self) {
        let Place { registry, repository } = &self.place;
        let (store, digest, media_type) =
            (&self.prover.fetcher.surveyor.store, self.digest(), MediaType::new(MANIFEST));
        let content = self.manifest.clone();
        store.put(&digest, content, media_type, registry, repository, Access::Authorized).await.unwrap();
        assert!(!self.is_public().await);
    }

    async fn is_public(&self) -> bool {
        self.prover.protected(vec![self.digest()]).await.is_empty()
    }
}

/// Names what the scene has in another registry's repository, too.
fn named_by_evil(scene: &mut Scene) -> Place {
    let evil = Place { registry: EVIL.parse().unwrap(), repository: "mallory/app".parse().unwrap() };
    for places in scene.named.places.values_mut() {
        places.insert(evil.clone());
    }
    scene.named.targets.insert(evil.clone(), scene.digest());
    evil
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
    let opens =
        async || scene.prover.fetcher.pull.opens_to_anybody(&scene.place, &scene.digest(), Kind::Manifest).await;
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

    scene.prover.fetcher.surveyor.store.drop_blobs(vec![scene.digest()], Reason::MaxBytes).await;
    scene.put().await;
    let before = only.heads();
    scene.prover.prove(&scene.named, &mut asked).await;
    assert_eq!(only.heads(), before, "not at once");
    let long_ago = Instant::now().checked_sub(ASK_AGAIN).expect("this machine has run for so long");
    asked.given.values_mut().for_each(|at| *at = long_ago);
    scene.prover.prove(&scene.named, &mut asked).await;
    assert!(scene.is_public().await);
}

#[tokio::test]
async fn a_registry_that_says_yes_to_everything_opens_nothing_of_anothers() {
    let (ours, evil) = (Answering::that(REFUSES).await, Answering::that(OPENS).await);
    let mut scene = Scene::beside(&[&ours], Some(&evil)).await;
    let place = named_by_evil(&mut scene);
    let mut asked = Asked::default();
    scene.prover.prove(&scene.named, &mut asked).await;
    assert!(evil.heads() > 0 && !scene.is_public().await, "it has a word, and no byte");
    scene.prover.have_delivered(&mut asked, || false).await;
    assert!(evil.server.count("GET ") > 0 && !scene.is_public().await);
    assert!(asked.refused[&scene.digest()].contains(&place), "it isn't asked again");
    let store = &scene.prover.fetcher.surveyor.store;
    let known = store.blob(&scene.digest()).await.unwrap().provenance();
    assert!(!known.may_be_given_for(&place.registry));
}

#[tokio::test]
async fn what_another_registry_delivers_to_anybody_is_anybodys() {
    let (ours, other) = (Answering::that(REFUSES).await, Answering::that_gives(OPENS, b"{}").await);
    let mut scene = Scene::beside(&[&ours], Some(&other)).await;
    named_by_evil(&mut scene);
    let mut asked = Asked::default();
    scene.prover.prove(&scene.named, &mut asked).await;
    let gets = other.server.count("GET ");
    scene.prover.have_delivered(&mut asked, || true).await;
    assert_eq!(other.server.count("GET "), gets, "what is news goes first");
    scene.prover.prove(&scene.named, &mut asked).await;
    scene.prover.have_delivered(&mut asked, || false).await;
    assert!(scene.is_public().await);
}

/// What containerd had before: whose it is.
#[tokio::test]
async fn what_containerd_had_is_the_one_registrys_that_is_named_for_it() {
    let only = Answering::that(REFUSES).await;
    for (sources, image, is_known) in [
        (&["r.test"][..], "r.test", true),
        (&["r.test", EVIL], "r.test", false),
        // It was loaded from a file, and another one's manifest names it.
        (&[EVIL], "r.test", false),
        (&[], "r.test", false),
    ] {
        let scene = Scene::of(&[&only]).await;
        let bytes = Bytes::from_static(b"a layer");
        let digest = Digest::of(&bytes);
        let theirs = tempfile::tempdir_in(scene.dir.path()).unwrap();
        let path = theirs.path().join("layer");
        std::fs::write(&path, &bytes).unwrap();
        let found = Found { path, size: bytes.len() as u64, media_type: None, sources: Vec::new() };
        let store = &scene.prover.fetcher.surveyor.store;
        store.adopt(&digest, found).await.unwrap();

        let mut content = Content::from_repository(digest, "r.test", "acme/app");
        let repository = content.sources.pop().unwrap().1;
        content.sources.extend(sources.iter().map(|registry| (registry.parse().unwrap(), repository.clone())));
        let inventory = Inventory { contents: Arc::new([(digest, content)].into()), ..Inventory::default() };
        let mut named = Named::of(Some(&inventory), &Catalog::default());
        let of_image = Place { registry: image.parse().unwrap(), repository };
        named.places.entry(digest).or_default().insert(of_image.clone());

        scene.prover.find_origins(&inventory, &named, &mut Asked::default()).await;
        let known = store.blob(&digest).await.unwrap().provenance();
        assert_eq!(known.may_be_given_for(&of_image.registry), is_known, "{sources:?}");
        assert!(!known.is_public() && !known.may_be_given_for(&EVIL.parse().unwrap()));
    }
}
