//! Power loss, replayed: the order of all writes and fsyncs is recorded, and the store is opened on what each instant
//! could have left on the disk.

use std::sync::Arc;

use bytes::Bytes;

use super::fixture::*;
use super::recorder::{Mark, Recorder};
use crate::image::{Access, Digest, MediaType, Tag};
use crate::store::boot::Boot;
use crate::store::{Adopted, Held, Reason, Store, TagRecord};

/// How many different losses are tried at each instant.
const LOSSES: u64 = 4;

fn tag() -> Tag {
    "latest".parse().unwrap()
}

async fn synced(store: &Store, disk: &Recorder, digest: Digest) {
    until_synced(store, &digest).await;
    assert!(store.shelves().index.flush());
    disk.mark(Mark::Synced(digest));
}

/// What containerd has comes in, alone and in the place of copies of ours, synced ones and others; and goes.
async fn adopt(store: &Store, disk: &Recorder, theirs: &Theirs, digests: &[Digest]) -> Vec<Digest> {
    let (new, unsynced) = (content(5, 1_100_000), content(6, 40_000));
    let new = theirs.commit(&new);
    assert_eq!(store.adopt(&new, theirs.found(&new)).await.unwrap(), Adopted::Linked);
    theirs.commit(&content(2, 1_200_000));
    // The copy that gives way was promised, and so is what takes its place.
    store.adopt(&digests[1], theirs.found(&digests[1])).await.unwrap();
    disk.set_slow(true);
    arrive(store, &unsynced).await;
    let given = theirs.commit(&unsynced);
    store.adopt(&given, theirs.found(&given)).await.unwrap();
    assert!(store.shelves().index.flush());
    disk.set_slow(false);
    disk.remove(&theirs.path(&digests[1]));
    store.released(&[digests[1]]).await;
    assert_eq!(store.holding(&digests[1]).await.unwrap().held, Held::Own);
    assert_eq!(store.drop_blobs(vec![given], Reason::Released).await.1, 1);
    assert!(store.shelves().index.flush());
    vec![new, given]
}

/// A life with everything in it that changes the disk. All blobs that were ever there.
async fn live(store: &Store, disk: &Recorder, theirs: &Theirs) -> Vec<Digest> {
    let contents = [content(1, 10), content(2, 1_200_000), content(3, 300_000), content(4, 5_000)];
    let digests: Vec<Digest> = contents.iter().map(|bytes| Digest::of(bytes)).collect();
    arrive(store, &contents[0]).await;
    arrive(store, &contents[1]).await;
    synced(store, disk, digests[0]).await;
    synced(store, disk, digests[1]).await;
    let manifest = Bytes::from_static(b"{\"schemaVersion\":2}");
    let digest = Digest::of(&manifest);
    let media_type = MediaType::new("application/vnd.oci.image.manifest.v1+json");
    store.put(&digest, manifest, media_type.clone(), &registry(), &repository(), Access::Authorized).await.unwrap();
    let answer = TagRecord { digest, media_type: media_type.unwrap(), size: 19, confirmed_at: 1 };
    store.record_tag(&registry(), &repository(), &tag(), answer).await;
    assert!(store.shelves().index.flush());
    disk.mark(Mark::Tagged);
    arrive(store, &contents[2]).await;
    // Gone, and back at once, while the index on the disk may still call the first one synced.
    disk.set_slow(true);
    disk.mark(Mark::Dropped(digests[1]));
    store.drop_blobs(vec![digests[1]], Reason::MaxBytes).await;
    arrive(store, &contents[1]).await;
    disk.mark(Mark::Dropped(digests[0]));
    set_aside(store, &digests[0]).await;
    arrive(store, &contents[3]).await;
    // The index is on the disk before the blobs are.
    assert!(store.shelves().index.flush());
    disk.set_slow(false);
    synced(store, disk, digests[1]).await;
    arrive(store, &contents[0]).await;
    synced(store, disk, digests[0]).await;
    store.delivered(&digest, &registry(), &repository(), Access::Anonymous).await;
    synced(store, disk, digest).await;
    let adopted = adopt(store, disk, theirs, &digests).await;
    digests.into_iter().chain([digest]).chain(adopted).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn power_is_lost_at_any_instant() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("larder");
    let disk = Arc::new(Recorder::new(&root));
    let store = Store::open_on(options(&root), Arc::clone(&disk) as _, Boot::numbered(1)).unwrap();
    let theirs = Theirs::new(dir.path().join("containerd"));
    let digests = live(&store, &disk, &theirs).await;
    store.close().await;

    let base = rand::random::<u64>();
    let (mut held, mut checked) = (0, 0);
    for len in 0..=disk.len() {
        for loss in 0..LOSSES {
            let seed = base.wrapping_add(len as u64 * LOSSES + loss);
            let after = tempfile::tempdir().unwrap();
            let at = after.path().join("larder");
            std::fs::create_dir(&at).unwrap();
            disk.crash(len, seed, &at);
            let store =
                Store::open_on(options(&at), Arc::new(crate::store::disk::RealDisk), Boot::numbered(2)).unwrap();
            let mut served = Vec::new();
            for digest in &digests {
                let Some(blob) = store.blob(digest).await else { continue };
                let bytes = try_read(&blob).await.unwrap_or_else(|error| panic!("at {len}, seed {seed}: {error}"));
                assert_eq!(&Digest::of(&bytes), digest, "at {len}, seed {seed}");
                served.push(*digest);
            }
            for promise in disk.promises(len) {
                match promise {
                    Mark::Synced(digest) => {
                        assert!(served.contains(&digest), "{digest} was synced; at {len}, seed {seed}");
                    }
                    Mark::Tagged => {
                        let known = store.tag(&registry(), &repository(), &tag()).await;
                        assert!(known.is_some(), "the tag was written; at {len}, seed {seed}");
                    }
                    Mark::Dropped(_) => {}
                }
            }
            held += served.len();
            checked += store.metrics().rechecked.get();
            store.close().await;
        }
    }
    println!("{} instants, {held} blobs served after them, {checked} of them hashed again", disk.len());
    assert!(held > 0 && checked > 0);
}
