//! The collector on a real store.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::collect::Collector;
use super::memory::{Memory, Remembered};
use super::survey::Surveyor;
use super::*;
use crate::config::{self, Cache, Percent, Span};
use crate::image::{Access, Digest, ImageName, MediaType};
use crate::pull::Pace;
use crate::store::{Blob, CommitError, Options, Store};

const BLOB: usize = 200_000;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn open(dir: &Path, max_bytes: u64) -> Store {
    let max_disk_percent = Percent::new(100).unwrap();
    let sync_after = Duration::ZERO;
    Store::open(Options { dir: dir.to_owned(), max_bytes: Some(max_bytes), max_disk_percent, sync_after }).unwrap()
}

fn content(n: u64) -> Bytes {
    Bytes::from(n.to_le_bytes().repeat(BLOB / 8))
}

async fn put(store: &Store, bytes: Bytes) -> Result<Blob, CommitError> {
    put_typed(store, bytes, None).await
}

async fn put_typed(store: &Store, bytes: Bytes, media_type: Option<MediaType>) -> Result<Blob, CommitError> {
    let (registry, repository) = ("r.test".parse().unwrap(), "a/b".parse().unwrap());
    store.put(&Digest::of(&bytes), bytes, media_type, &registry, &repository, Access::Anonymous).await
}

async fn bytes_held(store: &Store) -> u64 {
    store.usage().await.unwrap().bytes
}

/// A collector for what this node knows now, of a node without containerd.
async fn collector(store: &Store, config: Cache) -> Collector {
    let surveyor = Arc::new(Surveyor::new(store.clone(), config, None).await);
    let catalog = surveyor.survey(None, &[]).await;
    Collector::new(surveyor, watch::channel(Arc::new(catalog)).1, Metrics::default())
}

/// The manifest of an image of these blobs.
fn manifest(blobs: &[u64]) -> Bytes {
    let entry = |n: &u64| format!(r#"{{"digest":"{}","size":{BLOB}}}"#, Digest::of(&content(*n)));
    let entries: Vec<String> = blobs.iter().map(entry).collect();
    format!(r#"{{"config":{},"layers":[{}]}}"#, entries[0], entries[1..].join(",")).into()
}

async fn remember(store: &Store, name: &str, target: Digest, used: u64, in_use: bool) {
    let media_type = MediaType::new(MANIFEST).unwrap();
    let known = Remembered { target, media_type, used: used * 1000, prefetched_until: None, in_use };
    assert!(
        store
            .record(crate::store::Records::Images, &name.parse::<ImageName>().unwrap().to_string(), Some(&known))
            .await
    );
}

/// Files of an earlier life, which say how many seconds ago they were used.
fn lay(dir: &Path, files: impl IntoIterator<Item = (Bytes, u64)>) {
    for (bytes, age) in files {
        let path = dir.join("blobs/sha256").join(Digest::of(&bytes).hex());
        std::fs::write(&path, &bytes).unwrap();
        let used = SystemTime::now() - Duration::from_secs(age);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(used).unwrap();
    }
}

/// Waits until the store has found so many.
async fn found(store: &Store, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.usage().await.unwrap().blobs < count {
        assert!(Instant::now() < deadline, "the store doesn't find its blobs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_the_bounds_while_serving() {
    let dir = tempfile::tempdir().unwrap();
    let max = 20 * BLOB as u64;
    let store = open(dir.path(), max);
    let stop = CancellationToken::new();
    let collector = collector(&store, Cache::default()).await;
    let ends = stop.clone();
    let keeper = tokio::spawn(async move { collector.hold_bounds(ends).await });
    let mut readers = tokio::task::JoinSet::new();
    for n in 0..100 {
        let blob = put(&store, content(n)).await.unwrap();
        readers.spawn(async move {
            // Read piece by piece while it may be evicted: it comes whole.
            for _ in 0..20 {
                let mut reader = blob.reader(0..blob.size());
                let mut read = Vec::new();
                while let Some(piece) = reader.next().await.unwrap() {
                    read.extend_from_slice(&piece);
                    tokio::task::yield_now().await;
                }
                assert_eq!(&Digest::of(&read), blob.digest());
            }
        });
    }
    while let Some(done) = readers.join_next().await {
        done.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while bytes_held(&store).await > max {
        assert!(Instant::now() < deadline, "the bound is not held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let held = bytes_held(&store).await;
    assert!(held >= max * 8 / 10, "no more went than had to: {held} of {max}");
    let on_disk = std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count() as u64;
    assert_eq!(on_disk, store.usage().await.unwrap().blobs);
    stop.cancel();
    keeper.await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_mark_nothing_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 10 * BLOB as u64);
    for n in 0..11 {
        put(&store, content(n)).await.unwrap();
    }
    let collector = collector(&store, Cache::default()).await;
    let would = collector.collect(true).await;
    assert_eq!((would.blobs, store.usage().await.unwrap().blobs), (2, 11), "said, and not done");
    let collected = collector.collect(false).await;
    assert_eq!((collected.blobs, collected.plan.left, collected.plan), (2, 0, would.plan));
    assert_eq!(collector.collect(false).await.blobs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_larger_than_the_bound_is_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), BLOB as u64);
    let kept = put(&store, content(1)).await.unwrap();
    let giant = content(2).repeat(2);
    assert!(matches!(put(&store, giant.into()).await, Err(CommitError::TooLarge { size: 400_000 })));
    let digest = Digest::of(b"giant");
    let origin = crate::store::Origin { registry: "reg.test".parse().unwrap(), access: Access::Anonymous };
    assert!(store.ingest(&digest, 50 << 30, origin).await.is_err());
    assert_eq!(
        collector(&store, Cache::default()).await.collect(false).await.blobs,
        0,
        "nothing went for what can't be kept"
    );
    assert!(store.blob(kept.digest()).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coldest_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let max = 10 * BLOB as u64;
    let store = open(dir.path(), max);
    store.close().await;
    let names: Vec<Digest> = (0..12).map(|n| Digest::of(&content(n))).collect();
    lay(dir.path(), (0..12).map(|n| (content(n), 10_000 - n * 100)));
    let store = open(dir.path(), max);
    found(&store, 12).await;
    store.used(&names[0]);
    assert_eq!(collector(&store, Cache::default()).await.collect(false).await.blobs, 3);
    let left: Vec<Digest> = store.list(None, 100).await.unwrap().into_iter().map(|listed| listed.digest).collect();
    for (n, name) in names.iter().enumerate() {
        assert_eq!(left.contains(name), ![1, 2, 3].contains(&n), "blob {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_whole_and_those_in_use_last() {
    let dir = tempfile::tempdir().unwrap();
    let max = 8 * BLOB as u64;
    let store = open(dir.path(), max);
    let now = u64::try_from(Timestamp::now().as_second()).unwrap();
    // Three images with a layer in common, and a blob of none.
    let mut files = vec![(content(8), 2000)];
    for (name, blobs, age) in [("running", [0, 1, 9], 9000), ("old", [2, 3, 9], 5000), ("new", [4, 5, 9], 1000)] {
        let manifest = manifest(&blobs);
        remember(&store, &format!("r.test/{name}:v1"), Digest::of(&manifest), now - age, name == "running").await;
        files.extend(blobs.map(|n| (content(n), age)).into_iter().chain([(manifest, age)]));
    }
    assert!(store.settled().await);
    store.close().await;
    lay(dir.path(), files);
    let store = open(dir.path(), max);
    found(&store, 11).await;
    // And an image that nobody knows, put a moment ago.
    for n in [6, 7] {
        put(&store, content(n)).await.unwrap();
    }
    let unknown = *put_typed(&store, manifest(&[6, 7]), MediaType::new(MANIFEST)).await.unwrap().digest();
    let collector = collector(&store, Cache::default()).await;
    let stock = collector.stock().await;
    let group = stock.units.iter().find(|unit| unit.subject == Subject::Manifest(unknown)).unwrap();
    assert_eq!(group.parts.len(), 3);
    let collected = collector.collect(false).await;
    let name = |going: &Going| match &going.subject {
        Subject::Image(name) => name.repository.to_string(),
        other => format!("{other:?}"),
    };
    let goes: Vec<String> = collected.plan.goes.iter().map(name).collect();
    assert_eq!(goes, ["old".to_owned(), format!("{:?}", Subject::Blob(Digest::of(&content(8))))]);
    let left: Vec<Digest> = store.list(None, 100).await.unwrap().into_iter().map(|listed| listed.digest).collect();
    let stays: Vec<u64> = (0..10).filter(|n| left.contains(&Digest::of(&content(*n)))).collect();
    assert_eq!(stays, [0, 1, 4, 5, 6, 7, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_has_used_for_long_expires_and_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let max = 100 * BLOB as u64;
    let store = open(dir.path(), max);
    let now = u64::try_from(Timestamp::now().as_second()).unwrap();
    let mut files = Vec::new();
    for (name, blobs) in [("r.test/old:v1", [0, 1]), ("r.test/kept:v1", [1, 2])] {
        let manifest = manifest(&blobs);
        remember(&store, name, Digest::of(&manifest), now - 4000, false).await;
        files.extend(blobs.map(content).into_iter().chain([manifest]));
    }
    assert!(store.settled().await);
    store.close().await;
    lay(dir.path(), files.into_iter().map(|bytes| (bytes, 4000)));
    let store = open(dir.path(), max);
    found(&store, 5).await;
    let config =
        Cache { expire_unused: Span::secs(3600), keep: vec!["r.test/kept".parse().unwrap()], ..Cache::default() };
    let surveyor = Arc::new(Surveyor::new(store.clone(), config, None).await);
    let catalog = surveyor.survey(None, &[]).await;
    let names = |catalog: &Catalog| catalog.images.iter().map(|known| known.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&catalog), ["r.test/kept:v1", "r.test/old:v1"]);
    assert!(catalog.images.iter().all(|known| known.is_whole()), "{catalog:?}");
    assert!(matches!(catalog.images[0].why, Why::Kept(_)) && matches!(catalog.images[1].why, Why::Unused(_)));
    let collector = Collector::new(Arc::clone(&surveyor), watch::channel(Arc::new(catalog)).1, Metrics::default());
    collector.expire().await;
    assert_eq!(store.usage().await.unwrap().blobs, 3, "what the one that is kept has too stays");
    assert_eq!(names(&surveyor.survey(None, &[]).await), ["r.test/kept:v1"]);
}

/// An index that was lost leaves all blobs unproven: to hash them is work like any other look for damage.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_for_damage_pays_for_what_it_hashes_whole() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    lay(dir.path(), (0..4).map(|n| (content(n), 100)));
    let store = open(dir.path(), 100 * BLOB as u64);
    found(&store, 4).await;
    let rate = config::Bytes(4 << 20);
    let begun = Instant::now();
    assert_eq!(scrub::round(&store, &Pace::new(rate)).await, 0);
    let paid = 4 * (BLOB as u64 + scrub::EACH);
    assert!(begun.elapsed().as_secs_f64() >= paid as f64 / rate.0 as f64, "{:?}", begun.elapsed());
}

/// What was dropped for room isn't fetched again only to be dropped again.
#[tokio::test(flavor = "multi_thread")]
async fn what_had_to_go_stays_away_until_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::load(open(dir.path(), 1 << 20)).await;
    let (name, target) = ("r.test/app:v1".parse::<ImageName>().unwrap(), Digest::of(b"app"));
    let known = |in_use| Remembered {
        target,
        media_type: MediaType::new(MANIFEST).unwrap(),
        used: 1_000,
        prefetched_until: None,
        in_use,
    };
    memory.note(&name, known(false)).await;
    assert!(!memory.had_to_go(&name));
    memory.drop(&name);
    assert!(memory.was_dropped(&name) && !memory.was_dropped(&name));
    memory.note(&name, known(false)).await;
    assert!(memory.had_to_go(&name), "containerd has it still, and nothing uses it");
    memory.note(&name, known(true)).await;
    assert!(!memory.had_to_go(&name));
}
