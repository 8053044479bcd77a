//! Looking for damage before somebody needs the blob.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::fixture::*;
use crate::store::{Event, Scrubbed, Store};

/// Goes over the whole store; how many blobs are sound, and how many bytes were read.
async fn scrub(store: &Store) -> (usize, u64, Vec<Scrubbed>) {
    let (mut after, mut sound, mut bytes, mut other) = (None, 0, 0, Vec::new());
    while let Some(mut blob) = store.scrub_next(after.as_ref()).await {
        assert!(after.is_none_or(|after| *blob.digest() > after));
        after = Some(*blob.digest());
        loop {
            match blob.step().await {
                Scrubbed::Read(read) => bytes += read,
                Scrubbed::Sound => {
                    sound += 1;
                    break;
                }
                end => {
                    other.push(end);
                    break;
                }
            }
        }
        assert_eq!(blob.step().await, Scrubbed::Unknown, "it is over");
    }
    (sound, bytes, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("larder"));
    let theirs = Theirs::new(dir.path().join("containerd"));
    arrive(&store, &content(1, 2_500_000)).await;
    let bad = *arrive(&store, &content(2, 3_000_000)).await.digest();
    let linked = theirs.commit(&content(3, 1_200_000));
    store.adopt(&linked, theirs.found(&linked)).await.unwrap();
    assert_eq!(scrub(&store).await, (3, 6_700_000, vec![]));

    let mut events = store.events();
    let path = dir.path().join("larder/blobs/sha256").join(bad.hex());
    File::options().write(true).open(path).unwrap().write_all_at(b"rot", 2_100_000).unwrap();
    let (sound, bytes, other) = scrub(&store).await;
    assert_eq!((sound, other), (2, vec![Scrubbed::Damaged]));
    assert_eq!(bytes, 3_700_000 + (2 << 20), "up to the chunk that is damaged");
    assert!(store.blob(&bad).await.is_none());
    let mut told = Vec::new();
    while told.len() < 2 {
        match events.next().await.unwrap() {
            Event::Kept(..) => {}
            other => told.push(other),
        }
    }
    assert_eq!(told, [Event::Gone(bad), Event::Damaged(bad)]);
    assert_eq!(read(&arrive(&store, &content(2, 3_000_000)).await).await.len(), 3_000_000);
    assert_eq!(store.metrics().rotten.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_proven_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    arrive(&store, &content(1, 1_500_000)).await;
    let bad = *arrive(&store, &content(2, 700_000)).await.digest();
    store.close().await;
    std::fs::remove_file(dir.path().join("index.redb")).unwrap();
    let path = dir.path().join("blobs/sha256").join(bad.hex());
    File::options().write(true).open(path).unwrap().write_all_at(b"rot", 100).unwrap();
    let store = open(dir.path());
    until_mended(&store, dir.path()).await;
    assert_eq!(scrub(&store).await, (1, 0, vec![Scrubbed::Damaged]));
    assert_eq!(scrub(&store).await, (1, 1_500_000, vec![]), "it is proven now");
}
