//! Disks that can't be written to, are full, or aren't there. Those that need a mount need root.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;

use super::fixture::*;
use crate::image::{Access, Digest, MediaType, Tag};
use crate::store::{Adopted, CommitError, IngestError, OpenError, Reason, Store, TagRecord};

/// Something mounted at a folder, until it is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return None;
        }
        let status = Command::new("mount").args(arguments).arg(at).status().unwrap();
        assert!(status.success());
        Some(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

async fn put(store: &Store, bytes: &[u8]) -> Result<crate::store::Blob, CommitError> {
    let bytes = Bytes::copy_from_slice(bytes);
    store.put(&Digest::of(&bytes), bytes, None, &registry(), &repository(), Access::Anonymous).await
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(Store::open(options(dir.path())), Err(OpenError::Locked { .. })));
    drop(store);
    assert!(Store::open(options(dir.path())).is_ok(), "it is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_folder_at_all() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    let store = open(&dir.path().join("file/larder"));
    assert!(!store.is_writable());
    assert!(store.blob(&Digest::of(b"x")).await.is_none());
    assert!(matches!(store.ingest(&Digest::of(b"x"), 1, origin()).await, Err(IngestError::NotWritable)));
    assert!(matches!(put(&store, b"x").await, Err(CommitError::NotWritable)));
    let tag: Tag = "latest".parse().unwrap();
    let answer =
        TagRecord { digest: Digest::of(b"x"), media_type: MediaType::octet_stream(), size: 1, confirmed_at: 1 };
    store.record_tag(&registry(), &repository(), &tag, answer.clone()).await;
    assert!(store.shelves().index.flush());
    assert_eq!(store.tag(&registry(), &repository(), &tag).await, Some(answer), "remembered while the process lives");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_is_served_from() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(1, 1_300_000);
    let tag: Tag = "latest".parse().unwrap();
    let wrong = Digest::of(b"wrong");
    let answer = TagRecord { digest: wrong, media_type: MediaType::octet_stream(), size: 1, confirmed_at: 1 };
    let digest = {
        let store = open(dir.path());
        let digest = *arrive(&store, &bytes).await.digest();
        store.record_tag(&registry(), &repository(), &tag, answer.clone()).await;
        store.close().await;
        digest
    };
    fs::write(dir.path().join("blobs/sha256").join(wrong.hex()), b"not that").unwrap();
    let at = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::new(&["--bind", "-o", "ro", dir.path().to_str().unwrap()], at.path()) else { return };

    let store = open(at.path());
    assert!(!store.is_writable());
    assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
    assert!(store.blob(&digest).await.unwrap().provenance().is_public());
    assert_eq!(store.tag(&registry(), &repository(), &tag).await, Some(answer));
    assert!(matches!(store.ingest(&Digest::of(b"x"), 1, origin()).await, Err(IngestError::NotWritable)));
    assert!(matches!(put(&store, b"x").await, Err(CommitError::NotWritable)));
    for _ in 0..2 {
        assert!(store.blob(&wrong).await.is_none(), "it can't be removed, and isn't served");
    }
    assert_eq!(store.metrics().rotten.get(), 1);
    assert!(matches!(Store::open(options(dir.path())), Err(OpenError::Locked { .. })), "both ways lead to one folder");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stores_nothing_and_serves_everything() {
    let at = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=48m", "tmpfs"], at.path()) else { return };
    let dir = at.path().join("larder");
    let store = open(&dir);
    let bytes = content(1, 4 << 20);
    let kept = arrive(&store, &bytes).await;
    until_synced(&store, kept.digest()).await;
    assert!(store.shelves().index.flush());
    let begun = store.ingest(&Digest::of(b"begun"), 5, origin()).await.unwrap();

    let filler = fs::File::create(at.path().join("filler")).unwrap();
    let (mut at_byte, megabyte) = (0, vec![7; 64 << 10]);
    while filler.write_all_at(&megabyte, at_byte).is_ok() {
        at_byte += megabyte.len() as u64;
    }
    while filler.write_all_at(&[7; 512], at_byte).is_ok() {
        at_byte += 512;
    }
    assert!(matches!(store.ingest(&Digest::of(b"x"), 1, origin()).await, Err(IngestError::Full)));
    assert!(matches!(put(&store, b"x").await, Err(CommitError::Full)));
    let write = begun.file().write_all_at(&content(2, 1 << 20), 0).unwrap_err();
    store.note_write_error(&write);
    assert!(store.usage().await.unwrap().full);
    let tag = |n: u32| format!("tag-{n}").parse::<Tag>().unwrap();
    let answer = TagRecord { digest: *kept.digest(), media_type: MediaType::octet_stream(), size: 1, confirmed_at: 1 };
    for n in 0..4000 {
        store.record_tag(&registry(), &repository(), &tag(n), answer.clone()).await;
    }
    assert!(!store.shelves().index.flush(), "the index has no room to grow");
    assert!(store.metrics().index_failures.get() > 0);
    assert_eq!(store.tag(&registry(), &repository(), &tag(7)).await, Some(answer.clone()), "what waits is known");
    let digest = *kept.digest();
    drop(kept);
    assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes, "what is written is read");

    drop(filler);
    fs::remove_file(at.path().join("filler")).unwrap();
    let (freed, blobs) = store.drop_blobs(vec![digest], Reason::Full).await;
    assert_eq!((freed, blobs), (4 << 20, 1));
    assert!(!store.usage().await.unwrap().full);
    assert_eq!(read(&arrive(&store, b"after").await).await, b"after");
    assert!(store.shelves().index.flush());
    store.close().await;
    let store = open(&dir);
    assert_eq!(store.tag(&registry(), &repository(), &tag(3999)).await, Some(answer));
    assert!(store.blob(&Digest::of(b"after")).await.is_some());
    store.close().await;
}

/// A link can't cross mounts, even of one filesystem; and what can't be shared otherwise is left in place.
#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_of_one_filesystem() {
    let dir = tempfile::tempdir().unwrap();
    let (at, theirs) = (tempfile::tempdir().unwrap(), Theirs::new(dir.path().join("containerd")));
    let Some(_mount) = Mount::new(&["--bind", theirs.dir.to_str().unwrap()], at.path()) else { return };
    let seen_elsewhere = Theirs { dir: at.path().to_owned() };
    let store = open(&dir.path().join("larder"));
    let bytes = content(1, 2_100_000);
    let digest = theirs.commit(&bytes);
    let adopted = store.adopt(&digest, seen_elsewhere.found(&digest)).await.unwrap();
    // Where the tests' own folder can reflink, that is done.
    assert!(matches!(adopted, Adopted::LeftInPlace | Adopted::Reflinked), "{adopted:?}");
    assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
    assert!(theirs.path(&digest).metadata().unwrap().nlink() == 1);
    // By a path that needs no crossing, it is linked, without being hashed again.
    if adopted == Adopted::LeftInPlace {
        assert_eq!(store.adopt(&digest, theirs.found(&digest)).await.unwrap(), Adopted::Linked);
        assert_eq!(store.usage().await.unwrap().blobs, 1);
        assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
    }
}

/// Across subvolumes there is no link, but a reflink. Needs `mkfs.btrfs`.
#[tokio::test(flavor = "multi_thread")]
async fn reflinks() {
    let at = tempfile::tempdir().unwrap();
    let image = at.path().join("image");
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    match Command::new("mkfs.btrfs").arg("-q").arg(&image).status() {
        Ok(made) => assert!(made.success()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: there is no mkfs.btrfs");
            return;
        }
        Err(error) => panic!("mkfs.btrfs: {error}"),
    }
    let disk = at.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let Some(_mount) = Mount::new(&["-o", "loop", image.to_str().unwrap()], &disk) else { return };
    let other = disk.join("containerd");
    assert!(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&other).status().unwrap().success());
    let (store, theirs) = (open(&disk.join("larder")), Theirs::new(other));
    let (bytes, second) = (content(1, 20 << 20), content(2, 3 << 20));
    let digest = theirs.commit(&bytes);
    let arrived = arrive(&store, &bytes).await;
    assert_eq!(store.adopt(&digest, theirs.found(&digest)).await.unwrap(), Adopted::Reflinked);
    assert_eq!(read(&arrived).await, bytes, "who reads reads on");
    drop(arrived);
    assert_eq!(store.adopt(&digest, theirs.found(&digest)).await.unwrap(), Adopted::Already);
    let second_name = theirs.commit(&second);
    assert_eq!(store.adopt(&second_name, theirs.found(&second_name)).await.unwrap(), Adopted::Reflinked);
    until_synced(&store, &digest).await;
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes, usage.shared_bytes), (2, 0, 23 << 20));
    assert_eq!(store.drop_blobs(vec![digest], Reason::MaxBytes).await, (0, 0), "it would free nothing");
    nix::unistd::sync();
    let used = usage_of(&disk);
    assert!(used < 40 << 20, "{used} bytes are used for 23 MiB");
    store.close().await;

    let store = open(&disk.join("larder"));
    until_mended(&store, &disk.join("larder")).await;
    theirs.remove(&digest);
    store.released(&[digest]).await;
    assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
    assert_eq!(store.drop_blobs(vec![digest], Reason::MaxBytes).await, (20 << 20, 1));
    assert_eq!(read(&store.blob(&second_name).await.unwrap()).await, second);
    store.close().await;
}

fn usage_of(path: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(path).unwrap();
    (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
}
