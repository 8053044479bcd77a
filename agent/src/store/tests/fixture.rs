//! What the tests of the store share.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::config::Percent;
use crate::image::{Access, Digest, MediaType, Registry, Repository};
use crate::store::record::State;
use crate::store::{Blob, CommitError, Found, IngestError, Options, Origin, ReadError, Store};

pub(super) fn options(dir: &Path) -> Options {
    let max_disk_percent = Percent::new(100).unwrap();
    Options { dir: dir.to_owned(), max_bytes: None, max_disk_percent, sync_after: Duration::ZERO }
}

pub(super) fn open(dir: &Path) -> Store {
    Store::open(options(dir)).unwrap()
}

pub(super) fn registry() -> Registry {
    "docker.io".parse().unwrap()
}

pub(super) fn origin() -> Origin {
    Origin { registry: registry(), access: Access::Anonymous }
}

pub(super) fn repository() -> Repository {
    "library/nginx".parse().unwrap()
}

/// Bytes that don't compress into a pattern: another sequence for each seed.
pub(super) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[derive(Debug)]
#[allow(dead_code, reason = "shown when a test fails")]
pub(super) enum Refused {
    Ingest(IngestError),
    Commit(CommitError),
    Write(std::io::Error),
}

static DRIVER: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A blob arrives as transfers bring it: into an ingest, then committed.
pub(super) async fn try_arrive(store: &Store, bytes: &[u8]) -> Result<Blob, Refused> {
    let digest = Digest::of(bytes);
    let ingest = store.ingest(&digest, bytes.len() as u64, origin()).await.map_err(Refused::Ingest)?;
    let parts = [Bytes::copy_from_slice(bytes)];
    // A chunk is written by one at a time: a transfer's driver, of which there is one for a digest.
    let _driver = DRIVER.lock().await;
    ingest.recheck().map_err(Refused::Write)?;
    ingest.write(0, &parts).map_err(Refused::Write)?;
    while ingest.hash(0, &[]).map_err(Refused::Write)? {}
    let verified = Arc::clone(&ingest).verify().unwrap();
    let media_type = MediaType::new("application/vnd.oci.image.layer.v1.tar+gzip");
    let committed = store.commit(verified, media_type, &registry(), &repository(), Access::Anonymous).await;
    committed.map_err(Refused::Commit)
}

pub(super) async fn arrive(store: &Store, bytes: &[u8]) -> Blob {
    try_arrive(store, bytes).await.unwrap()
}

pub(super) async fn try_read(blob: &Blob) -> Result<Vec<u8>, ReadError> {
    let mut reader = blob.reader(0..blob.size());
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// The bytes of a blob, after a check that they are those of its name.
pub(super) async fn read(blob: &Blob) -> Vec<u8> {
    let bytes = try_read(blob).await.unwrap();
    assert_eq!(bytes.len() as u64, blob.size());
    assert_eq!(&Digest::of(&bytes), blob.digest());
    bytes
}

/// Waits until something is so.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn is_synced(store: &Store, digest: &Digest) -> bool {
    store.shelves().index.record(digest).is_some_and(|record| record.state == State::Synced)
}

pub(super) async fn until_synced(store: &Store, digest: &Digest) {
    until("the blob is synced", || is_synced(store, digest)).await;
}

/// Whether the first look over the whole store is done.
pub(super) fn is_mended(dir: &Path) -> bool {
    std::fs::read(dir.join("index.trial")).is_ok_and(|marks| marks == b"p")
}

/// Waits until the first look over the whole store is done.
pub(super) async fn until_mended(store: &Store, dir: &Path) {
    until("the store is mended", || is_mended(dir)).await;
    assert!(store.is_writable());
}

/// Takes a blob out of service as one does who found it damaged.
pub(super) async fn set_aside(store: &Store, digest: &Digest) {
    store.set_aside(&store.blob(digest).await.unwrap().reader(0..0)).await;
}

/// A folder as containerd keeps it: whole files, synced, that nobody writes to again.
pub(super) struct Theirs {
    pub(super) dir: PathBuf,
}

impl Theirs {
    pub(super) fn new(dir: PathBuf) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Commits a blob as containerd does.
    pub(super) fn commit(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let arriving = self.dir.join("arriving");
        std::fs::write(&arriving, bytes).unwrap();
        std::fs::File::open(&arriving).unwrap().sync_all().unwrap();
        std::fs::rename(&arriving, self.path(&digest)).unwrap();
        digest
    }

    pub(super) fn remove(&self, digest: &Digest) {
        std::fs::remove_file(self.path(digest)).unwrap();
    }

    pub(super) fn found(&self, digest: &Digest) -> Found {
        let path = self.path(digest);
        let size = path.metadata().unwrap().len();
        let media_type = MediaType::new("application/vnd.oci.image.layer.v1.tar+gzip");
        Found { path, size, media_type, sources: vec![(registry(), repository())] }
    }
}

/// How many names a blob's file has.
pub(super) fn names(dir: &Path, digest: &Digest) -> u64 {
    dir.join("blobs").join(digest.algorithm()).join(digest.hex()).metadata().map_or(0, |metadata| metadata.nlink())
}
