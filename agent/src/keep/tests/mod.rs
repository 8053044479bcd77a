//! The collector on a real store.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::collect::Collector;
use super::memory::Remembered;
use super::survey::Surveyor;
use super::*;
use crate::config::{Cache, Percent, Span};
use crate::image::{Access, Digest, ImageName, MediaType};
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

/// An image of a manifest and blobs; its manifest.
async fn put_image(store: &Store, blobs: &[u64]) -> Digest {
    let mut parts = Vec::new();
    for n in blobs {
        let blob = put(store, content(*n)).await.unwrap();
        parts.push(format!(r#"{{"digest":"{}","size":{BLOB}}}"#, blob.digest()));
    }
    let manifest = format!(r#"{{"config":{},"layers":[{}]}}"#, parts[0], parts[1..].join(","));
    *put_typed(store, manifest.into(), MediaType::new(MANIFEST)).await.unwrap().digest()
}

async fn remember(store: &Store, name: &str, target: Digest, used: u64, in_use: bool) {
    let media_type = MediaType::new(MANIFEST).unwrap();
    let known = Remembered { target, media_type, used, prefetched_until: None, in_use };
    assert!(
        store
            .record(crate::store::Records::Images, &name.parse::<ImageName>().unwrap().to_string(), Some(&known))
            .await
    );
}

/// Has blobs be found by the store that were last used so many seconds ago.
fn age(dir: &Path, ages: impl IntoIterator<Item = (Digest, u64)>) {
    for (digest, seconds) in ages {
        let file = std::fs::File::options().write(true).open(dir.join("blobs/sha256").join(digest.hex())).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
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
    // Files of an earlier life, used at known times.
    store.close().await;
    let names: Vec<Digest> = (0..12)
        .map(|n| {
            let digest = Digest::of(&content(n));
            std::fs::write(dir.path().join("blobs/sha256").join(digest.hex()), content(n)).unwrap();
            age(dir.path(), [(digest, 10_000 - n * 100)]);
            digest
        })
        .collect();
    let store = open(dir.path(), max);
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.usage().await.unwrap().blobs < 12 {
        assert!(Instant::now() < deadline, "the store doesn't find its blobs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.used(&names[0]);
    assert_eq!(collector(&store, Cache::default()).await.collect(false).await.blobs, 3);
    let left: Vec<Digest> = store.list(None, 100).await.into_iter().map(|listed| listed.digest).collect();
    for (n, name) in names.iter().enumerate() {
        assert_eq!(left.contains(name), ![1, 2, 3].contains(&n), "blob {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_whole_and_those_in_use_last() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 8 * BLOB as u64);
    let now = u64::try_from(Timestamp::now().as_second()).unwrap();
    // Three images with a layer in common, one that nobody knows, and a blob of none.
    let (running, old, new) =
        (put_image(&store, &[0, 1, 9]).await, put_image(&store, &[2, 3, 9]).await, put_image(&store, &[4, 5, 9]).await);
    let (unknown, single) = (put_image(&store, &[6, 7]).await, *put(&store, content(8)).await.unwrap().digest());
    remember(&store, "r.test/running:v1", running, now - 9000, true).await;
    remember(&store, "r.test/old:v1", old, now - 5000, false).await;
    remember(&store, "r.test/new:v1", new, now - 10, false).await;
    let collector = collector(&store, Cache::default()).await;
    let subjects = |collected: &Collected| {
        let name = |going: &Going| match &going.subject {
            Subject::Image(name) => name.repository.to_string(),
            Subject::Manifest(digest) => if *digest == unknown { "unknown" } else { "?" }.to_owned(),
            Subject::Blob(digest) => if *digest == single { "single" } else { "?" }.to_owned(),
        };
        collected.plan.goes.iter().map(name).collect::<Vec<_>>()
    };
    // What arrived a moment ago, and what was read then, is spared while anything else is left.
    let collected = collector.collect(false).await;
    assert_eq!(subjects(&collected), ["single"], "{collected:?}");
    let left: Vec<Digest> = store.list(None, 100).await.into_iter().map(|listed| listed.digest).collect();
    assert!([running, old, new, unknown].iter().all(|manifest| left.contains(manifest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_has_used_for_long_expires_and_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let max = 100 * BLOB as u64;
    let store = open(dir.path(), max);
    let now = u64::try_from(Timestamp::now().as_second()).unwrap();
    let mut files = Vec::new();
    for (name, blobs) in [("r.test/old:v1", [0, 1]), ("r.test/kept:v1", [1, 2])] {
        let [config, layer] = blobs.map(content);
        let entry = |bytes: &Bytes| format!(r#"{{"digest":"{}","size":{BLOB}}}"#, Digest::of(bytes));
        let manifest = Bytes::from(format!(r#"{{"config":{},"layers":[{}]}}"#, entry(&config), entry(&layer)));
        remember(&store, name, Digest::of(&manifest), now - 4000, false).await;
        files.extend([config, layer, manifest]);
    }
    assert!(store.settled().await);
    store.close().await;
    // Files of an earlier life say when they were used.
    for bytes in &files {
        std::fs::write(dir.path().join("blobs/sha256").join(Digest::of(bytes).hex()), bytes).unwrap();
        age(dir.path(), [(Digest::of(bytes), 4000)]);
    }
    let store = open(dir.path(), max);
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.usage().await.unwrap().blobs < 5 {
        assert!(Instant::now() < deadline, "the store doesn't find its blobs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
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
