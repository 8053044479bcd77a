//! Blobs come, are read, and are there after a restart.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;

use super::fixture::*;
use crate::image::{Access, Digest, MediaType, Tag};
use crate::store::{CHUNK, CommitError, Condition, IngestError, Origin, ReadError, Stuck, TagRecord};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_readable_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(1, 2 * MIB + 12_345);
    let digest = Digest::of(&bytes);
    let store = open(dir.path());
    assert!(store.blob(&digest).await.is_none());
    let blob = arrive(&store, &bytes).await;
    assert_eq!(read(&blob).await, bytes);
    let again = store.blob(&digest).await.unwrap();
    assert!(again.provenance().is_public());
    assert_eq!(store.repositories(&digest).await, [(registry(), repository())]);
    assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0, "nothing is left of its arrival");
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes), (1, bytes.len() as u64));
    drop((blob, again));
    store.close().await;

    let store = open(dir.path());
    let blob = store.blob(&digest).await.unwrap();
    assert_eq!(read(&blob).await, bytes);
    assert_eq!(blob.media_type().unwrap().as_str(), "application/vnd.oci.image.layer.v1.tar+gzip");
    assert!(blob.provenance().is_public());
    assert_eq!(store.repositories(&digest).await, [(registry(), repository())]);
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes), (1, bytes.len() as u64));
    until_synced(&store, &digest).await;
    assert_eq!(store.list(None, 10).await.unwrap()[0].condition, Condition::Synced);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_is_shared_by_those_of_one_origin() {
    let dir = tempfile::tempdir().unwrap();
    let (store, digest) = (open(dir.path()), Digest::of(b"arriving"));
    let begun = store.ingest(&digest, 8, origin()).await.unwrap();
    assert!(Arc::ptr_eq(&begun, &store.ingest(&digest, 8, origin()).await.unwrap()));
    let elsewhere = Origin { registry: "other.test".parse().unwrap(), ..origin() };
    let for_some = Origin { access: Access::Authorized, ..origin() };
    for other in [elsewhere, for_some] {
        assert!(matches!(store.ingest(&digest, 8, other).await, Err(IngestError::Busy { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_blobs_and_empty_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let put = async |digest: Digest, bytes: &'static [u8], access| {
        let media_type = MediaType::new("application/vnd.oci.image.manifest.v1+json");
        store.put(&digest, Bytes::from_static(bytes), media_type, &registry(), &repository(), access).await
    };
    let blob = put(Digest::of(b"{}"), b"{}", Access::Authorized).await.unwrap();
    assert_eq!(read(&blob).await, b"{}");
    assert!(!blob.provenance().is_public());
    let same = put(Digest::of(b"{}"), b"{}", Access::Anonymous).await.unwrap();
    assert!(same.provenance().is_public() && blob.provenance().is_public(), "who has it open sees it too");
    let empty = put(Digest::of(b""), b"", Access::Anonymous).await.unwrap();
    assert_eq!(read(&empty).await, b"");
    assert_eq!(read(&arrive(&store, b"").await).await, b"");
    let wrong = put(Digest::of(b"this"), b"that", Access::Anonymous).await;
    assert!(matches!(wrong, Err(CommitError::Mismatch { .. })));
    assert!(store.blob(&Digest::of(b"this")).await.is_none());
    assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_arrival_for_all_who_ask() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = Digest::of(b"x");
    let (one, two) = tokio::join!(store.ingest(&digest, 1, origin()), store.ingest(&digest, 1, origin()));
    assert!(Arc::ptr_eq(&one.unwrap(), two.as_ref().unwrap()));
    assert!(matches!(store.ingest(&digest, 2, origin()).await, Err(IngestError::Busy { size: 1, .. })));
    assert_eq!(store.usage().await.unwrap().reserved_bytes, 1);
    drop(two);
    assert_eq!(store.usage().await.unwrap().reserved_bytes, 0);
    let poisoned = store.ingest(&digest, 2, origin()).await.unwrap();
    std::os::unix::fs::FileExt::write_all_at(&*poisoned.file(), b"??", 0).unwrap();
    store.abandon(&poisoned).await;
    let fresh = store.ingest(&digest, 2, origin()).await.unwrap();
    assert!(!Arc::ptr_eq(&fresh, &poisoned));
    assert_eq!(fresh.file().metadata().unwrap().len(), 0, "nothing is left of what was given up");
    store.abandon(&poisoned).await;
    assert!(fresh.path().exists(), "another's files are left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let tag: Tag = "latest".parse().unwrap();
    let answer = |n: u64| TagRecord {
        digest: Digest::of(&n.to_le_bytes()),
        media_type: MediaType::octet_stream(),
        size: n,
        confirmed_at: n,
    };
    let store = open(dir.path());
    assert_eq!(store.tag(&registry(), &repository(), &tag).await, None);
    store.record_tag(&registry(), &repository(), &tag, answer(1)).await;
    store.record_tag(&registry(), &repository(), &tag, answer(2)).await;
    assert_eq!(store.tag(&registry(), &repository(), &tag).await, Some(answer(2)));
    store.close().await;
    let store = open(dir.path());
    assert_eq!(store.tag(&registry(), &repository(), &tag).await, Some(answer(2)));
    assert_eq!(store.tag(&registry(), &"other".parse().unwrap(), &tag).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_from_the_disk_itself() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(2, 9 * MIB + 1);
    let store = open(dir.path());
    let blob = arrive(&store, &bytes).await;
    until_synced(&store, blob.digest()).await;
    for _ in 0..3 {
        drop_from_page_cache(&blob);
        assert_eq!(read(&blob).await, bytes);
    }
    // A wait that is given up is taken up again, without a byte lost or given twice.
    drop_from_page_cache(&blob);
    let mut reader = blob.reader(0..blob.size());
    let mut got = Vec::new();
    let mut waits = 0;
    loop {
        match reader.next().now_or_never() {
            Some(piece) => match piece.unwrap() {
                Some(piece) => got.extend_from_slice(&piece),
                None => break,
            },
            None => {
                waits += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    assert_eq!(got, bytes);
    assert!(waits > 0, "the page cache had it all: nothing was tested");
}

fn drop_from_page_cache(blob: &crate::store::Blob) {
    rustix::fs::fadvise(&*blob.opened.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_readable_after_its_file_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(3, 3 * MIB);
    let store = open(dir.path());
    let blob = arrive(&store, &bytes).await;
    let mut reader = blob.reader(0..blob.size());
    let first = reader.next().await.unwrap().unwrap();
    set_aside(&store, blob.digest()).await;
    assert!(store.blob(blob.digest()).await.is_none());
    let mut got = first.to_vec();
    while let Some(piece) = reader.next().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert_eq!(got, bytes);
    assert_eq!(store.usage().await.unwrap().blobs, 0);
    assert_eq!(read(&arrive(&store, &bytes).await).await, bytes);
}

#[test]
fn any_range() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(4, 3 * MIB + 700);
    let _entered = runtime.enter();
    let store = open(dir.path());
    let blob = runtime.block_on(arrive(&store, &bytes));
    let size = bytes.len() as u64;
    let edges = prop_oneof![0..=size + 10, (0..4u64, 0..3u64).prop_map(|(n, off)| (n * CHUNK + off).saturating_sub(1))];
    proptest!(|(from in edges.clone(), to in edges)| {
        let got = runtime.block_on(async {
            let mut reader = blob.reader(from..to);
            let mut got = Vec::new();
            loop {
                let remaining = reader.remaining();
                let Some(piece) = reader.next().await.unwrap() else { break };
                assert!(!piece.is_empty() && piece.len() as u64 <= CHUNK);
                assert_eq!(reader.remaining(), remaining - piece.len() as u64);
                got.extend_from_slice(&piece);
            }
            got
        });
        let to = (to as usize).min(bytes.len());
        let from = (from as usize).min(to);
        prop_assert_eq!(got, &bytes[from..to]);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn many_read_and_write_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..48 {
        let store = store.clone();
        tasks.spawn(async move {
            // Each blob arrives six times, from tasks that don't know of each other.
            let bytes = content(n % 8, 300_000 + n as usize % 8 * 100_000);
            match try_arrive(&store, &bytes).await {
                Ok(blob) => assert_eq!(read(&blob).await, bytes),
                Err(other) => panic!("{other:?}"),
            }
            let blob = store.blob(&Digest::of(&bytes)).await.unwrap();
            assert_eq!(read(&blob).await, bytes);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.usage().await.unwrap().blobs, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_chunk_stops_the_reader_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(5, 2 * MIB);
    let store = open(dir.path());
    let blob = arrive(&store, &bytes).await;
    std::os::unix::fs::FileExt::write_all_at(&*blob.opened.file, b"rot", MIB as u64 + 500).unwrap();
    let mut reader = blob.reader(10..blob.size());
    assert_eq!(reader.next().await.unwrap().unwrap(), bytes[10..MIB]);
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, ReadError::Rotten { chunk: 1, .. }) && error.is_damage());
    blob.opened.file.set_len(MIB as u64 + 5).unwrap();
    assert!(matches!(reader.next().await, Err(ReadError::Truncated { chunk: 1, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_doesnt_answer_is_no_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    arrive(&store, &content(1, 1000)).await;
    assert_eq!(store.list(None, 10).await.unwrap().len(), 1);
    store.hang();
    assert!(store.blob(&Digest::of(b"x")).await.is_none());
    assert_eq!(store.list(None, 10).await, Err(Stuck));
    assert_eq!(store.verify(|_, _| {}).await, Err(Stuck));
}
