//! Any order of what can happen to blobs that the store and containerd have, held against a plain model of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::fixture::*;
use crate::image::Digest;
use crate::store::{Adopted, Held, Reason, Store};

const BLOBS: u64 = 4;

#[derive(Debug, Clone, Copy)]
enum Step {
    Arrive(u64),
    /// containerd has it from now on.
    Commit(u64),
    Adopt(u64),
    /// containerd drops it; whether we are told before it is unlinked.
    Remove(u64, bool),
    Evict(u64, Reason),
    Drop(u64),
    Restart {
        without_index: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop_oneof![Just(Reason::MaxBytes), Just(Reason::MaxDiskPercent), Just(Reason::Full)];
    prop_oneof![
        3 => (0..BLOBS).prop_map(Step::Arrive),
        3 => (0..BLOBS).prop_map(Step::Commit),
        5 => (0..BLOBS).prop_map(Step::Adopt),
        2 => (0..BLOBS, any::<bool>()).prop_map(|(n, first)| Step::Remove(n, first)),
        2 => (0..BLOBS, reason).prop_map(|(n, reason)| Step::Evict(n, reason)),
        1 => (0..BLOBS).prop_map(Step::Drop),
        1 => any::<bool>().prop_map(|without_index| Step::Restart { without_index }),
    ]
}

fn bytes(n: u64) -> Vec<u8> {
    content(n + 100, 1000 + n as usize * 500_000)
}

/// What should be so of one blob.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Expected {
    ours: bool,
    theirs: bool,
    /// Both are one file.
    is_one: bool,
}

#[test]
fn any_order() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    proptest!(ProptestConfig::with_cases(48), |(steps in proptest::collection::vec(step(), 1..24))| {
        runtime.block_on(follow(&steps));
    });
}

async fn follow(steps: &[Step]) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("larder");
    let theirs = Theirs::new(dir.path().join("containerd"));
    let mut store = open(&root);
    let mut model: BTreeMap<u64, Expected> = (0..BLOBS).map(|n| (n, Expected::default())).collect();
    for step in steps {
        store = take(*step, store, &theirs, &root, &mut model).await;
        compare(&store, &theirs, &root, &model).await;
    }
    store.close().await;
}

async fn take(
    step: Step,
    store: Store,
    theirs: &Theirs,
    root: &std::path::Path,
    model: &mut BTreeMap<u64, Expected>,
) -> Store {
    let name = |n: u64| Digest::of(&bytes(n));
    match step {
        Step::Arrive(n) => {
            arrive(&store, &bytes(n)).await;
            model.get_mut(&n).unwrap().ours = true;
        }
        Step::Commit(n) => {
            let expected = model.get_mut(&n).unwrap();
            if !expected.theirs {
                theirs.commit(&bytes(n));
                expected.theirs = true;
            }
        }
        Step::Adopt(n) => {
            let expected = model.get_mut(&n).unwrap();
            if expected.theirs {
                // Who reads it meanwhile reads on.
                let reading = store.blob(&name(n)).await;
                let adopted = store.adopt(&name(n), theirs.found(&name(n))).await.unwrap();
                assert_eq!(adopted, if expected.is_one { Adopted::Already } else { Adopted::Linked });
                if let Some(blob) = reading {
                    read(&blob).await;
                }
                *expected = Expected { ours: true, is_one: true, ..*expected };
            }
        }
        Step::Remove(n, told_first) => {
            let expected = model.get_mut(&n).unwrap();
            if expected.theirs {
                if told_first {
                    store.released(&[name(n)]).await;
                }
                theirs.remove(&name(n));
                if told_first {
                    store.shelves().look_after_released();
                } else {
                    store.released(&[name(n)]).await;
                }
                *expected = Expected { theirs: false, is_one: false, ..*expected };
            }
        }
        Step::Evict(n, reason) => {
            let expected = model.get_mut(&n).unwrap();
            let (freed, went) = store.drop_blobs(vec![name(n)], reason).await;
            let goes = expected.ours && !expected.is_one;
            assert_eq!((freed > 0, went), (goes, u64::from(goes)));
            expected.ours &= !goes;
        }
        Step::Drop(n) => {
            let expected = model.get_mut(&n).unwrap();
            let (freed, went) = store.drop_blobs(vec![name(n)], Reason::Expired).await;
            assert_eq!((freed > 0, went), (expected.ours && !expected.is_one, u64::from(expected.ours)));
            *expected = Expected { ours: false, is_one: false, ..*expected };
        }
        Step::Restart { without_index } => {
            store.close().await;
            if without_index {
                fs::remove_file(root.join("index.redb")).unwrap();
            }
            let store = open(root);
            until_mended(&store, root).await;
            return store;
        }
    }
    store
}

async fn compare(store: &Store, theirs: &Theirs, root: &std::path::Path, model: &BTreeMap<u64, Expected>) {
    let (mut own, mut shared, mut blobs) = (0, 0, 0);
    for (n, expected) in model {
        let (bytes, name) = (bytes(*n), Digest::of(&bytes(*n)));
        let blob = store.blob(&name).await;
        assert_eq!(blob.is_some(), expected.ours, "blob {n}");
        if let Some(blob) = blob {
            assert_eq!(read(&blob).await, bytes);
            blobs += 1;
            *(if expected.is_one { &mut shared } else { &mut own }) += bytes.len() as u64;
        }
        let held = store.holding(&name).await.map(|holding| holding.held);
        let expected_held = expected.ours.then_some(if expected.is_one { Held::Shared } else { Held::Own });
        assert_eq!(held, expected_held, "blob {n}");
        assert_eq!(names(root, &name), u64::from(expected.ours) + u64::from(expected.is_one), "blob {n}");
        assert_eq!(theirs.path(&name).exists(), expected.theirs);
        if expected.theirs {
            let metadata = theirs.path(&name).metadata().unwrap();
            assert_eq!((metadata.len(), metadata.nlink()), (bytes.len() as u64, 1 + u64::from(expected.is_one)));
            assert_eq!(rustix::fs::listxattr(theirs.path(&name), &mut [0_u8; 64][..]), Ok(0), "it isn't ours to label");
        }
    }
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes, usage.shared_bytes), (blobs, own, shared));
    let left = fs::read_dir(root.join("ingest")).unwrap().count();
    assert_eq!(left, 0, "nothing is left below ingest/");
}
