use std::path::Path;
use std::time::Instant;

use bytes::Bytes;

use super::*;
use crate::config::Percent;
use crate::image::{Access, Digest};
use crate::store::{Blob, CommitError, Options};

const BLOB: usize = 200_000;

fn open(dir: &Path, max_bytes: u64) -> Store {
    let max_disk_percent = Percent::new(100).unwrap();
    let sync_after = Duration::ZERO;
    Store::open(Options { dir: dir.to_owned(), max_bytes: Some(max_bytes), max_disk_percent, sync_after }).unwrap()
}

fn content(n: u64) -> Bytes {
    Bytes::from(n.to_le_bytes().repeat(BLOB / 8))
}

async fn put(store: &Store, bytes: Bytes) -> Result<Blob, CommitError> {
    let (registry, repository) = ("r.test".parse().unwrap(), "a/b".parse().unwrap());
    store.put(&Digest::of(&bytes), bytes, None, &registry, &repository, Access::Anonymous).await
}

async fn bytes_held(store: &Store) -> u64 {
    store.usage().await.unwrap().bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_the_bounds_while_serving() {
    let dir = tempfile::tempdir().unwrap();
    let max = 20 * BLOB as u64;
    let store = open(dir.path(), max);
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(hold_bounds(store.clone(), stop.clone()));
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
async fn what_is_read_stays_before_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 10 * BLOB as u64);
    let mut read = None;
    for n in 0..11 {
        let blob = put(&store, content(n)).await.unwrap();
        read.get_or_insert(blob);
    }
    let read = read.unwrap();
    let swept = sweep(&store).await;
    assert_eq!((swept.blobs, swept.left), (2, 0));
    // All were used just now, so nothing but the second look, which spares nothing, could find room.
    let swept = sweep(&store).await;
    assert_eq!(swept.blobs, 0, "below the mark nothing goes");
    drop(read);
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
    assert_eq!(sweep(&store).await.blobs, 0, "nothing went for what can't be kept");
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
            let path = dir.path().join("blobs/sha256").join(digest.hex());
            std::fs::write(&path, content(n)).unwrap();
            let used = std::time::SystemTime::now() - Duration::from_secs(10_000 - n * 100);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(used).unwrap();
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
    assert_eq!(sweep(&store).await.blobs, 3);
    let left: Vec<Digest> = store.list(None, 100).await.into_iter().map(|listed| listed.digest).collect();
    for (n, name) in names.iter().enumerate() {
        assert_eq!(left.contains(name), ![1, 2, 3].contains(&n), "blob {n}");
    }
}
