//! What others do to the folder, and what time does to a disk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::fixture::*;
use crate::image::{Digest, MediaType, Tag};
use crate::store::{Audit, Condition, TagRecord};

fn path_of(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join(digest.algorithm()).join(digest.hex())
}

/// A store that was closed in order, with one synced blob.
async fn closed_store(dir: &Path, bytes: &[u8]) -> Digest {
    let store = open(dir);
    let digest = *arrive(&store, bytes).await.digest();
    until_synced(&store, &digest).await;
    until_mended(&store, dir).await;
    store.close().await;
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(1, 1_500_000);
    let digest = closed_store(dir.path(), &bytes).await;
    let file = File::options().write(true).open(path_of(dir.path(), &digest)).unwrap();
    file.write_all_at(&[!bytes[1_200_000]], 1_200_000).unwrap();

    let store = open(dir.path());
    let blob = store.blob(&digest).await.unwrap();
    let error = try_read(&blob).await.unwrap_err();
    assert!(error.is_damage(), "{error}");
    set_aside(&store, &digest).await;
    assert!(store.blob(&digest).await.is_none());
    assert!(!path_of(dir.path(), &digest).exists());
    assert_eq!(read(&arrive(&store, &bytes).await).await, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cut_short_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(1, 1_500_000);
    let digest = closed_store(dir.path(), &bytes).await;
    File::options().write(true).open(path_of(dir.path(), &digest)).unwrap().set_len(1_000_000).unwrap();
    let store = open(dir.path());
    assert!(store.blob(&digest).await.is_none());
    assert!(!path_of(dir.path(), &digest).exists());
    assert_eq!(store.usage().await.unwrap().blobs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_files_are_proven_or_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path(), b"one").await;
    let (right, wrong) = (Digest::of(b"right"), Digest::of(b"wrong"));
    fs::write(path_of(dir.path(), &right), b"right").unwrap();
    fs::write(path_of(dir.path(), &wrong), b"something else").unwrap();
    let blobs = dir.path().join("blobs/sha256");
    fs::write(blobs.join("README"), b"hello").unwrap();
    let outside = dir.path().join("outside");
    fs::write(&outside, b"outside").unwrap();
    symlink(&outside, path_of(dir.path(), &Digest::of(b"outside"))).unwrap();
    nix::unistd::mkfifo(&path_of(dir.path(), &Digest::of(b"pipe")), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(path_of(dir.path(), &Digest::of(b"folder"))).unwrap();

    let store = open(dir.path());
    until_mended(&store, dir.path()).await;
    let listed = store.list(None, 100).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(listed.iter().filter(|blob| blob.condition == Condition::Suspect).count(), 2);
    let blob = store.blob(&right).await.unwrap();
    assert_eq!(read(&blob).await, b"right");
    assert!(!blob.provenance().may_be_given_for(&registry()), "nobody knows where it came from");
    assert!(store.blob(&wrong).await.is_none());
    assert!(!path_of(dir.path(), &wrong).exists());
    for foreign in [&b"outside"[..], b"pipe", b"folder"] {
        let digest = Digest::of(foreign);
        assert!(store.blob(&digest).await.is_none());
        assert!(path_of(dir.path(), &digest).symlink_metadata().is_ok(), "not ours to remove");
    }
    assert!(blobs.join("README").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_or_garbage_is_built_anew() {
    for garbage in [None, Some(&b""[..]), Some(b"garbage"), Some(&[0x5a; 100_000])] {
        let dir = tempfile::tempdir().unwrap();
        let bytes = content(1, 1_100_000);
        let digest = closed_store(dir.path(), &bytes).await;
        let index = dir.path().join("index.redb");
        fs::remove_file(&index).unwrap();
        if let Some(garbage) = garbage {
            fs::write(&index, garbage).unwrap();
        }
        let store = open(dir.path());
        let blob = store.blob(&digest).await.unwrap();
        assert_eq!(read(&blob).await, bytes);
        assert!(blob.provenance().is_public(), "the file's label knows where it came from");
        assert!(blob.media_type().is_some());
        assert_eq!(dir.path().join("index.redb.unreadable").exists(), garbage.is_some_and(|g| !g.is_empty()));
    }
}

const DIR: &str = "LARDER_TEST_DAMAGED_STORE";

/// The child of the test below: not a test by itself. Reads the one blob, and changes the index. A panic ends it, as it
/// ends the agent.
#[test]
#[ignore = "run by flipped_bytes_in_the_index_serve_nothing_wrong"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(dir.as_ref());
        let bytes = content(1, 1_100_000);
        let blob = store.blob(&Digest::of(&bytes)).await.unwrap();
        assert_eq!(read(&blob).await, bytes);
        until_mended(&store, dir.as_ref()).await;
        for n in 0..50 {
            arrive(&store, &content(n, 10)).await;
        }
        assert!(store.shelves().index.flush());
        store.close().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bytes_in_the_index_serve_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path(), &content(1, 1_100_000)).await;
    let index = dir.path().join("index.redb");
    let sound = fs::read(&index).unwrap();
    let first = rand::random::<u64>() / 2;
    for seed in first..first + 40 {
        let mut flipped = sound.clone();
        for chunk in content(seed, 24).chunks_exact(8) {
            let at = u64::from_le_bytes(chunk.try_into().unwrap()) as usize % flipped.len();
            flipped[at] ^= 0x10;
        }
        fs::write(&index, flipped).unwrap();
        let deaths = (0..6).take_while(|_| !child_lives(dir.path())).count();
        assert!(deaths < 4, "seed {seed}: the agent died again and again");
    }
}

fn child_lives(dir: &Path) -> bool {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "store::tests::damage::child", "--ignored", "--test-threads=1"]).env(DIR, dir);
    child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status().unwrap().success()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_kills_its_reader_is_not_read_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let digest = closed_store(dir.path(), b"one").await;
    for (marks, set_aside) in [("oror", false), ("oo", true), ("ororooror", true)] {
        fs::write(dir.path().join("index.trial"), marks).unwrap();
        let store = open(dir.path());
        assert_eq!(dir.path().join("index.redb.unreadable").exists(), set_aside, "{marks}");
        assert_eq!(read(&store.blob(&digest).await.unwrap()).await, b"one");
        until_mended(&store, dir.path()).await;
        let _ = fs::remove_file(dir.path().join("index.redb.unreadable"));
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_is_deleted_while_we_run() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("larder");
    let store = open(&dir);
    let bytes = content(1, 1_100_000);
    let open_blob = arrive(&store, &bytes).await;
    let other = *arrive(&store, b"other").await.digest();
    let tag: Tag = "latest".parse().unwrap();
    let answer =
        TagRecord { digest: other, media_type: MediaType::octet_stream(), size: 5, confirmed_at: 1_700_000_000 };
    store.record_tag(&registry(), &repository(), &tag, answer.clone()).await;
    let arriving = store.ingest(&Digest::of(b"arriving"), 8, origin()).await.unwrap();
    assert!(store.shelves().index.flush());
    // Our own threads may be making files in it meanwhile.
    until("the folder is deleted", || fs::remove_dir_all(&dir).is_ok()).await;

    assert_eq!(read(&open_blob).await, bytes, "what is open is read to its end");
    assert!(store.blob(&other).await.is_none());
    let part = [Bytes::from_static(b"arriving")];
    arriving.write(0, &part).unwrap();
    arriving.hash(0, &part).unwrap();
    let verified = arriving.verify().unwrap();
    let access = crate::image::Access::Anonymous;
    assert!(store.commit(verified, None, &registry(), &repository(), access).await.is_err(), "its file is gone");
    assert_eq!(read(&arrive(&store, b"new").await).await, b"new");
    assert_eq!(store.tag(&registry(), &repository(), &tag).await, Some(answer.clone()));
    drop(open_blob);
    store.close().await;

    let store = open(&dir);
    assert_eq!(store.tag(&registry(), &repository(), &tag).await, Some(answer));
    assert_eq!(read(&store.blob(&Digest::of(b"new")).await.unwrap()).await, b"new");
    until_mended(&store, &dir).await;
    assert_eq!(store.usage().await.unwrap().blobs, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_files_and_leftovers_go() {
    let dir = tempfile::tempdir().unwrap();
    let gone = closed_store(dir.path(), b"one").await;
    fs::remove_file(path_of(dir.path(), &gone)).unwrap();
    let ingest = dir.path().join("ingest");
    let (old, young, put) = (ingest.join("sha256-aa.part"), ingest.join("sha256-bb.part"), ingest.join("put-0-0.tmp"));
    let trash = dir.path().join("trash/x");
    for path in [&old, &young, &put, &trash] {
        fs::write(path, b"left").unwrap();
    }
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    let store = open(dir.path());
    until_mended(&store, dir.path()).await;
    assert_eq!(store.usage().await.unwrap().blobs, 0);
    assert!(store.list(None, 10).await.unwrap().is_empty());
    assert!(!old.exists() && !put.exists() && !trash.exists());
    assert!(young.exists(), "it may be taken up again");
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_finds_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let good = arrive(&store, &content(1, 100)).await;
    let bad = *arrive(&store, &content(2, 1_100_000)).await.digest();
    let file = File::options().write(true).open(path_of(dir.path(), &bad)).unwrap();
    file.write_all_at(b"rot", 1_050_000).unwrap();
    let mut said = Vec::new();
    let audit = store.verify(|listed, sound| said.push((listed.digest, sound))).await.unwrap();
    assert_eq!(audit, Audit { sound: 1, sound_bytes: 100, wrong: 1, unreadable: 0 });
    said.sort_unstable();
    let mut expected = vec![(*good.digest(), true), (bad, false)];
    expected.sort_unstable();
    assert_eq!(said, expected);
    assert!(store.blob(&bad).await.is_none());
    assert_eq!(read(&good).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_wait_for_one_proof() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(1, 20 << 20);
    let digest = closed_store(dir.path(), &bytes).await;
    fs::remove_file(dir.path().join("index.redb")).unwrap();
    let store = open(dir.path());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let store = store.clone();
        tasks.spawn(async move { store.blob(&digest).await.unwrap().size() });
    }
    while let Some(size) = tasks.join_next().await {
        assert_eq!(size.unwrap(), bytes.len() as u64);
    }
    assert_eq!(store.metrics().rechecked.get(), 1);
}
