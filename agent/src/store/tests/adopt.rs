//! What containerd holds costs no disk twice.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::fixture::*;
use crate::image::{Access, Digest};
use crate::store::{AdoptError, Adopted, Condition, Event, Held, Reason, Store};

const MIB: usize = 1 << 20;

struct Node {
    dir: tempfile::TempDir,
    theirs: Theirs,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let theirs = Theirs::new(dir.path().join("containerd"));
        Self { dir, theirs }
    }

    fn cache(&self) -> std::path::PathBuf {
        self.dir.path().join("larder")
    }

    fn open(&self) -> Store {
        open(&self.cache())
    }

    fn names(&self, digest: &Digest) -> u64 {
        names(&self.cache(), digest)
    }

    async fn adopt(&self, store: &Store, digest: &Digest) -> Result<Adopted, AdoptError> {
        store.adopt(digest, self.theirs.found(digest)).await
    }
}

async fn held(store: &Store, digest: &Digest) -> Option<Held> {
    store.holding(digest).await.map(|holding| holding.held)
}

async fn counted(store: &Store) -> (u64, u64, u64) {
    let usage = store.usage().await.unwrap();
    (usage.blobs, usage.bytes, usage.shared_bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn linked_served_and_ours_when_containerd_drops_it() {
    let node = Node::new();
    let bytes = content(1, 2 * MIB + 77);
    let digest = node.theirs.commit(&bytes);
    let store = node.open();
    let mut events = store.events();
    assert_eq!(node.adopt(&store, &digest).await.unwrap(), Adopted::Linked);
    assert!(matches!(events.next().await, Some(Event::Kept(of, _)) if of == digest));
    assert_eq!(node.adopt(&store, &digest).await.unwrap(), Adopted::Already);
    assert_eq!(node.names(&digest), 2);
    assert_eq!(fs::read_dir(node.cache().join("ingest")).unwrap().count(), 0);
    let blob = store.blob(&digest).await.unwrap();
    assert_eq!(read(&blob).await, bytes);
    assert!(blob.media_type().is_some());
    assert!(!blob.provenance().may_be_given_for(&registry()), "it is named, and hasn't delivered it");
    assert_eq!(store.repositories(&digest).await, [(registry(), repository())]);
    assert_eq!(held(&store, &digest).await, Some(Held::Shared));
    assert_eq!(counted(&store).await, (1, 0, bytes.len() as u64));
    assert!(store.last_used(vec![digest, Digest::of(b"x")]).await[0] > 1_700_000_000_000);

    // Nothing is done to containerd's file.
    assert_eq!(xattrs(&node, &digest), 0);
    store.delivered(&digest, &registry(), &repository(), Access::Anonymous).await;
    assert_eq!(xattrs(&node, &digest), 0);

    // For space it stays: it would free nothing.
    assert_eq!(store.drop_blobs(vec![digest], Reason::MaxBytes).await, (0, 0));
    assert_eq!(node.names(&digest), 2);
    store.released(&[digest]).await;
    assert_eq!(held(&store, &digest).await, Some(Held::Shared), "containerd still has it");
    node.theirs.remove(&digest);
    until("it is ours alone", || node.cache_label(&digest)).await;
    assert_eq!(counted(&store).await, (1, bytes.len() as u64, 0));
    assert_eq!(held(&store, &digest).await, Some(Held::Own));
    store.close().await;

    // Its label says where it came from when the index is lost.
    fs::remove_file(node.cache().join("index.redb")).unwrap();
    let store = node.open();
    let blob = store.blob(&digest).await.unwrap();
    assert!(blob.provenance().is_public());
    assert_eq!(store.drop_blobs(vec![digest], Reason::MaxBytes).await, (bytes.len() as u64, 1));
    assert_eq!(counted(&store).await, (0, 0, 0));
}

impl Node {
    fn cache_label(&self, digest: &Digest) -> bool {
        let path = self.cache().join("blobs/sha256").join(digest.hex());
        rustix::fs::getxattr(path, crate::store::disk::LABEL, &mut [0_u8; 4096][..]).is_ok()
    }
}

fn xattrs(node: &Node, digest: &Digest) -> usize {
    rustix::fs::listxattr(node.theirs.path(digest), &mut [0_u8; 4096][..]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_copy_gives_way_while_it_is_read() {
    let node = Node::new();
    let bytes = content(2, 3 * MIB);
    let store = node.open();
    let blob = arrive(&store, &bytes).await;
    let digest = *blob.digest();
    let mut reader = blob.reader(0..blob.size());
    let mut got = reader.next().await.unwrap().unwrap().to_vec();
    node.theirs.commit(&bytes);
    let modified = node.theirs.path(&digest).metadata().unwrap().mtime_nsec();
    assert_eq!(node.adopt(&store, &digest).await.unwrap(), Adopted::Linked);
    assert_eq!(node.names(&digest), 2);
    while let Some(piece) = reader.next().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert_eq!(got, bytes, "who reads reads on");
    drop((blob, reader));
    let blob = store.blob(&digest).await.unwrap();
    assert_eq!(blob.opened.file.metadata().unwrap().nlink(), 2, "and the next reads the link");
    assert!(blob.provenance().is_public(), "what was known of it is");
    assert_eq!(counted(&store).await, (1, 0, bytes.len() as u64));
    // One that arrives anyway doesn't take the place of the link.
    assert_eq!(read(&arrive(&store, &bytes).await).await, bytes);
    assert_eq!(node.names(&digest), 2);
    assert_eq!(fs::read_dir(node.cache().join("ingest")).unwrap().count(), 0);
    assert_eq!(node.theirs.path(&digest).metadata().unwrap().mtime_nsec(), modified);
    store.close().await;

    let store = node.open();
    until_mended(&store, &node.cache()).await;
    assert_eq!(counted(&store).await, (1, 0, bytes.len() as u64));
    assert_eq!(store.list(None, 9).await.unwrap()[0].condition, Condition::Synced);
    assert_eq!(store.list(None, 9).await.unwrap()[0].held, Held::Shared);
    assert_eq!(store.metrics().rechecked.get(), 0);
    assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_is_never_adopted() {
    let node = Node::new();
    let store = node.open();
    let bytes = content(3, MIB + 5);
    let digest = node.theirs.commit(&bytes);
    let file = File::options().write(true).open(node.theirs.path(&digest)).unwrap();
    file.write_all_at(b"rot", 1000).unwrap();
    for own in [false, true] {
        if own {
            arrive(&store, &bytes).await;
        }
        for _ in 0..2 {
            assert!(matches!(node.adopt(&store, &digest).await, Err(AdoptError::Wrong { .. })));
        }
        assert_eq!(fs::read_dir(node.cache().join("ingest")).unwrap().count(), 0);
        assert_eq!(node.names(&digest), u64::from(own));
    }
    assert_eq!(store.metrics().adoptions_wrong.get(), 1, "hashed once");
    assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
    let mut found = node.theirs.found(&digest);
    found.size += 1;
    assert!(matches!(store.adopt(&digest, found.clone()).await, Err(AdoptError::Size { .. })));
    node.theirs.remove(&digest);
    assert!(matches!(store.adopt(&digest, found).await, Err(AdoptError::Gone { .. })));
    // What containerd then gets anew is another file.
    node.theirs.commit(&bytes);
    assert_eq!(node.adopt(&store, &digest).await.unwrap(), Adopted::Linked);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_copy_gives_way_to_nothing_but_its_like() {
    let node = Node::new();
    let store = node.open();
    for (number, rotten) in [(0, 10), (1, 2 * MIB as u64 + 3), (2, 2 * MIB as u64 - 1)] {
        let bytes = content(60 + number, 2 * MIB + 5);
        let digest = node.theirs.commit(&bytes);
        arrive(&store, &bytes).await;
        let file = File::options().write(true).open(node.theirs.path(&digest)).unwrap();
        file.write_all_at(&[!bytes[rotten as usize]], rotten).unwrap();
        assert!(matches!(node.adopt(&store, &digest).await, Err(AdoptError::Wrong { .. })), "rot at {rotten}");
        assert_eq!(node.names(&digest), 1);
        assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
    }
    assert_eq!(store.metrics().adoptions_wrong.get(), 3);

    // One of our own that went bad is mended by it.
    let bytes = content(70, 2 * MIB);
    let digest = node.theirs.commit(&bytes);
    arrive(&store, &bytes).await;
    let ours = node.cache().join("blobs").join(digest.algorithm()).join(digest.hex());
    File::options().write(true).open(ours).unwrap().write_all_at(b"rot", 1_500_000).unwrap();
    assert_eq!(node.adopt(&store, &digest).await.unwrap(), Adopted::Linked);
    assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_in_a_linked_blob_is_ours_to_fetch_again() {
    let node = Node::new();
    let store = node.open();
    let bytes = content(4, 2 * MIB);
    let digest = node.theirs.commit(&bytes);
    node.adopt(&store, &digest).await.unwrap();
    let file = File::options().write(true).open(node.theirs.path(&digest)).unwrap();
    file.write_all_at(b"rot", 1_500_000).unwrap();
    let blob = store.blob(&digest).await.unwrap();
    let mut reader = blob.reader(0..blob.size());
    reader.next().await.unwrap();
    assert!(reader.next().await.unwrap_err().is_damage());
    store.set_aside(&reader).await;
    assert!(store.blob(&digest).await.is_none());
    assert_eq!(read(&arrive(&store, &bytes).await).await, bytes);
    // The one that was read is at fault, and not the one that came since.
    store.set_aside(&reader).await;
    assert!(store.blob(&digest).await.is_some());
    assert!(matches!(node.adopt(&store, &digest).await, Err(AdoptError::Wrong { .. })));
    assert_eq!(held(&store, &digest).await, Some(Held::Own));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_nobody_looked() {
    let node = Node::new();
    let (kept, dropped, lost) = (content(5, MIB), content(6, 2000), content(7, 3000));
    let store = node.open();
    for bytes in [&kept, &dropped, &lost] {
        let digest = node.theirs.commit(bytes);
        node.adopt(&store, &digest).await.unwrap();
    }
    store.close().await;
    let [kept_name, dropped_name, lost_name] = [&kept, &dropped, &lost].map(|bytes| Digest::of(bytes));
    node.theirs.remove(&dropped_name);
    node.theirs.remove(&lost_name);
    fs::remove_file(node.cache().join("blobs/sha256").join(lost_name.hex())).unwrap();
    // A start that died midway, and one that linked and did no more.
    fs::hard_link(node.theirs.path(&kept_name), node.cache().join("ingest/adopt-00000000deadbeef-1.tmp")).unwrap();
    for index_is_lost in [false, true] {
        if index_is_lost {
            fs::remove_file(node.cache().join("index.redb")).unwrap();
        }
        let store = node.open();
        until_mended(&store, &node.cache()).await;
        assert_eq!(counted(&store).await, (2, dropped.len() as u64, kept.len() as u64), "{index_is_lost}");
        assert_eq!(held(&store, &kept_name).await, Some(Held::Shared));
        assert_eq!(held(&store, &dropped_name).await, Some(Held::Own));
        assert_eq!(fs::read_dir(node.cache().join("ingest")).unwrap().count(), 0);
        assert_eq!(read(&store.blob(&kept_name).await.unwrap()).await, kept);
        assert_eq!(read(&store.blob(&dropped_name).await.unwrap()).await, dropped);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_stays_where_space_is_wanted() {
    let node = Node::new();
    let store = node.open();
    let own = *arrive(&store, &content(8, 500)).await.digest();
    let shared = node.theirs.commit(&content(9, 500));
    node.adopt(&store, &shared).await.unwrap();
    assert_eq!(store.drop_blobs(vec![own, shared], Reason::MaxDiskPercent).await, (500, 1));
    assert_eq!(store.drop_blobs(vec![shared], Reason::Released).await, (0, 1), "asked for in so many words");
    assert_eq!(node.theirs.path(&shared).metadata().unwrap().nlink(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_filesystem_in_common_it_is_left_in_place() {
    let node = Node::new();
    let store = node.open();
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let theirs = Theirs::new(elsewhere.path().join("containerd"));
    let is_same = elsewhere.path().metadata().unwrap().dev() == node.dir.path().metadata().unwrap().dev();
    assert!(!is_same, "the test needs two filesystems");
    let bytes = content(10, 2 * MIB);
    let digest = theirs.commit(&bytes);
    assert_eq!(store.adopt(&digest, theirs.found(&digest)).await.unwrap(), Adopted::LeftInPlace);
    assert_eq!(store.adopt(&digest, theirs.found(&digest)).await.unwrap(), Adopted::Already);
    assert_eq!((held(&store, &digest).await, node.names(&digest)), (Some(Held::InPlace), 0));
    assert_eq!(counted(&store).await, (1, 0, bytes.len() as u64));
    assert_eq!(read(&store.blob(&digest).await.unwrap()).await, bytes);
    assert_eq!(store.drop_blobs(vec![digest], Reason::Full).await, (0, 0));
    store.close().await;

    let store = node.open();
    until_mended(&store, &node.cache()).await;
    let blob = store.blob(&digest).await.unwrap();
    assert_eq!(store.metrics().rechecked.get(), 0, "it is the file that was proven");
    theirs.remove(&digest);
    store.released(&[digest]).await;
    assert_eq!(read(&blob).await, bytes, "who reads reads on");
    drop(blob);
    assert!(store.blob(&digest).await.is_none());
    assert_eq!(counted(&store).await, (0, 0, 0));

    // A copy of our own stays: it is all that is left when containerd drops its.
    theirs.commit(&bytes);
    arrive(&store, &bytes).await;
    assert_eq!(store.adopt(&digest, theirs.found(&digest)).await.unwrap(), Adopted::Already);
    assert_eq!(held(&store, &digest).await, Some(Held::Own));
    // Rot in what is left in place takes it out of service, and is not taken back in.
    let other = theirs.commit(&content(11, 5000));
    store.adopt(&other, theirs.found(&other)).await.unwrap();
    File::options().write(true).open(theirs.path(&other)).unwrap().write_all_at(b"rot", 9).unwrap();
    let blob = store.blob(&other).await.unwrap();
    let mut reader = blob.reader(0..5000);
    assert!(reader.next().await.unwrap_err().is_damage());
    store.set_aside(&reader).await;
    assert!(store.blob(&other).await.is_none() && theirs.path(&other).exists());
    assert!(matches!(store.adopt(&other, theirs.found(&other)).await, Err(AdoptError::Wrong { .. })));
    // Gone without a word: nobody is told that it is here.
    theirs.remove(&other);
    assert!(store.blob(&other).await.is_none());
}
