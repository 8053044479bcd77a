use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use bytes::Bytes;
use tracing::debug;

use super::blob::Blob;
use super::bounds::Usage;
use super::errors::{CommitError, IngestError};
use super::index::{Change, Row};
use super::ingest::{Ingest, Origin, Verified};
use super::label::Label;
use super::layout::FileId;
use super::locks::held;
use super::lookup::Sight;
use super::provenance::Provenance;
use super::record::{BlobRecord, Hold, State};
use super::shelves::Shelves;
use super::space::Trouble;
use super::{CHUNK, chunks};
use crate::image::{Access, Digest, MediaType, Registry, Repository};

/// Who delivered a blob, and how.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) registry: Registry,
    pub(super) repository: Repository,
    pub(super) access: Access,
}

/// Why nothing is stored.
enum NoRoom {
    TooLarge,
    Full,
    NotWritable,
}

impl Shelves {
    /// Opens the place where a blob arrives; the same one for all who ask while it does. Blocks on the disk.
    pub(super) fn begin(&self, digest: Digest, size: u64, origin: &Origin) -> Result<Arc<Ingest>, IngestError> {
        let _arrival = self.hold_arrival(&digest);
        if let Some(ingest) = held(&self.arriving).get(&digest).and_then(Weak::upgrade) {
            // What came under one origin is for those of that origin alone, as long as it isn't whole.
            let same = ingest.size() == size && ingest.is_of(origin);
            return if same { Ok(ingest) } else { Err(IngestError::Busy { digest, size: ingest.size() }) };
        }
        match self.room_for(size) {
            Ok(()) => {}
            Err(NoRoom::TooLarge) => return Err(IngestError::TooLarge { size }),
            Err(NoRoom::Full) => return Err(IngestError::Full),
            Err(NoRoom::NotWritable) => return Err(IngestError::NotWritable),
        }
        let dir = self.layout.ingest();
        let opened = match Ingest::open(&dir, digest, size, origin) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.keep_folder();
                Ingest::open(&dir, digest, size, origin)
            }
            other => other,
        };
        let ingest = Arc::new(opened.map_err(|source| {
            self.space.note(&source);
            IngestError::io(&dir, source)
        })?);
        let mut arriving = held(&self.arriving);
        arriving.retain(|_, ingest| ingest.strong_count() > 0);
        arriving.insert(digest, Arc::downgrade(&ingest));
        drop(arriving);
        self.grown.notify_one();
        Ok(ingest)
    }

    /// Gives up what arrived. Blocks on the disk.
    pub(super) fn abandon(&self, ingest: &Arc<Ingest>) {
        let _arrival = self.hold_arrival(ingest.digest());
        self.discard(ingest);
        self.no_longer_arriving(ingest);
    }

    fn discard(&self, ingest: &Ingest) {
        // Where its file is not, another arrival may be.
        if is_at(&ingest.file(), ingest.path())
            && let Err(error) = ingest.discard()
        {
            debug!(digest = %ingest.digest(), %error, "what arrived can't be removed yet");
        }
    }

    fn no_longer_arriving(&self, ingest: &Arc<Ingest>) {
        let mut arriving = held(&self.arriving);
        if arriving.get(ingest.digest()).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(ingest))) {
            arriving.remove(ingest.digest());
        }
    }

    fn room_for(&self, size: u64) -> Result<(), NoRoom> {
        if self.index.is_backed_up() {
            return Err(NoRoom::NotWritable);
        }
        // To count what lies below `ingest/` is to look at each file there: only where it makes the difference.
        let rough = self.usage_with(0);
        if !self.bounds.admit(size, &rough) && !self.bounds.admit(size, &self.usage()) {
            return Err(NoRoom::TooLarge);
        }
        self.space.allows(size).map_err(|trouble| match trouble {
            Trouble::Full => {
                // Wakes who can make room.
                self.grown.notify_one();
                NoRoom::Full
            }
            Trouble::ReadOnly => NoRoom::NotWritable,
        })
    }

    /// Puts a blob that arrived in its place. Blocks on the disk, but for no fsync.
    pub(super) fn commit(
        &self,
        verified: &Verified,
        media_type: Option<MediaType>,
        delivery: &Delivery,
    ) -> Result<Blob, CommitError> {
        let ingest = &verified.ingest;
        let digest = ingest.digest();
        let record = self.new_record(ingest.size(), media_type);
        let row = Row { record, checksums: verified.checksums.as_slice().into() };
        let placed = self.place(ingest.file(), ingest.path(), digest, row, delivery);
        // While it stands among what arrives, nobody else begins at these paths.
        if placed.is_ok() {
            // A map without its bytes says nothing; one that stays is swept up as a leftover.
            let _ = self.disk.unlink(ingest.map_path());
        } else {
            self.discard(ingest);
        }
        self.no_longer_arriving(ingest);
        match placed {
            // Another one who shared the arrival was first.
            Err(CommitError::Io { .. }) => match self.look(digest) {
                Sight::Whole(blob) => {
                    self.note_delivery(digest, delivery, |_| true);
                    Ok(blob)
                }
                Sight::Suspect | Sight::Nothing => placed,
            },
            placed => placed,
        }
    }

    /// Stores a small blob that is in memory. Blocks on the disk, but for no fsync.
    pub(super) fn put(
        &self,
        digest: &Digest,
        bytes: &Bytes,
        media_type: Option<MediaType>,
        delivery: &Delivery,
    ) -> Result<Blob, CommitError> {
        if digest.like(bytes) != *digest {
            return Err(CommitError::Mismatch { digest: *digest });
        }
        let size = bytes.len() as u64;
        if let Sight::Whole(blob) = self.look(digest)
            && (media_type.is_none() || blob.media_type() == media_type.as_ref())
        {
            self.note_delivery(digest, delivery, |_| true);
            return Ok(blob);
        }
        match self.room_for(size) {
            Ok(()) => {}
            Err(NoRoom::TooLarge) => return Err(CommitError::TooLarge { size }),
            Err(NoRoom::Full) => return Err(CommitError::Full),
            Err(NoRoom::NotWritable) => return Err(CommitError::NotWritable),
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let path = self.layout.ingest().join(format!("put-{:016x}-{number}.tmp", self.run));
        let file = match self.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.keep_folder();
                self.disk.open(&path)
            }
            other => other,
        };
        let placed = file.and_then(|file| self.disk.write_at(&file, 0, bytes).map(|()| file));
        let placed = placed.map_err(|source| {
            self.space.note(&source);
            CommitError::io(&path, source)
        });
        let checksums: Arc<[u32]> = bytes.chunks(CHUNK as usize).map(crc32fast::hash).collect();
        let row = Row { record: self.new_record(size, media_type), checksums };
        let placed = placed.and_then(|file| self.place(Arc::new(file), &path, digest, row, delivery));
        if placed.is_err() {
            let _ = self.disk.unlink(&path);
        }
        placed
    }

    fn new_record(&self, size: u64, media_type: Option<MediaType>) -> BlobRecord {
        let provenance = Default::default();
        BlobRecord { size, state: State::Unsynced(self.boot), hold: Hold::Own, media_type, provenance }
    }

    /// Renames a proven file to its blob's name and enters it.
    fn place(
        &self,
        file: Arc<File>,
        from: &Path,
        digest: &Digest,
        mut row: Row,
        delivery: &Delivery,
    ) -> Result<Blob, CommitError> {
        debug_assert_eq!(row.checksums.len() as u64, chunks(row.record.size));
        let to = self.layout.blob(digest);
        let _name = self.hold_name(digest);
        if !is_at(&file, from) {
            // Committed already, or deleted; what is there now was begun since and is not proven.
            let source = io::Error::new(io::ErrorKind::NotFound, "the file that was proven is gone");
            return Err(CommitError::Io { path: from.to_owned(), source });
        }
        if let Some(known) = self.index.record(digest) {
            row.record.provenance = known.provenance;
            row.record.media_type = row.record.media_type.or(known.media_type);
        }
        row.record.provenance.add(&delivery.registry, delivery.access);
        if let Some(blob) = self.keep_shared(digest, &row, delivery) {
            let _ = self.disk.unlink(from);
            return Ok(blob);
        }
        Label::of(&row.record).write(&*self.disk, &file);
        self.index.forget_durably(digest);
        let renamed = match self.disk.rename(from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.keep_folder();
                self.disk.rename(from, &to)
            }
            other => other,
        };
        renamed.map_err(|source| {
            self.space.note(&source);
            CommitError::io(&to, source)
        })?;
        held(&self.shunned).remove(digest);
        self.index.update(digest, |_| Change::Put(row.record.clone(), Some(Arc::clone(&row.checksums))));
        self.index.touch(digest);
        self.index.add_repository(digest, &delivery.registry, &delivery.repository);
        let blob = self.open.replace(self.opened(digest, file, row));
        self.to_sync.push(digest);
        self.show_totals();
        self.grown.notify_one();
        debug!(%digest, size = blob.size(), "stored");
        Ok(blob)
    }

    /// Under the lock of its name: what containerd has too stays in its place, and a copy that arrived beside it doesn't
    /// come there. What is new of it is entered.
    fn keep_shared(&self, digest: &Digest, new: &Row, delivery: &Delivery) -> Option<Blob> {
        let known = self.index.row(digest)?;
        let (file, metadata) = self.layout.open_blob(digest).ok().flatten()?;
        if known.record.hold == Hold::Own || !self.is_sound(&known, &metadata) {
            return None;
        }
        let Row { record: BlobRecord { media_type, provenance, .. }, .. } = new.clone();
        let record = BlobRecord { media_type, provenance, ..known.record };
        self.index.update(digest, |_| Change::Put(record.clone(), None));
        self.index.touch(digest);
        self.index.add_repository(digest, &delivery.registry, &delivery.repository);
        Some(self.open.replace(self.opened(digest, file.into(), Row { record, checksums: known.checksums })))
    }

    /// Remembers that a registry delivered, or confirmed, a blob that is held, if that counts by what is known of it; whether
    /// it does. Blocks on the disk.
    pub(super) fn note_delivery(
        &self,
        digest: &Digest,
        delivery: &Delivery,
        counts: impl Fn(&Provenance) -> bool,
    ) -> bool {
        let (mut known_here, mut news) = (false, None);
        self.index.update(digest, |known| {
            let Some(mut record) = known else { return Change::Keep };
            known_here = counts(&record.provenance);
            if !known_here {
                return Change::Keep;
            }
            if !record.provenance.add(&delivery.registry, delivery.access) {
                return Change::Keep;
            }
            news = Some(Label::of(&record));
            Change::Put(record, None)
        });
        if let Some(label) = news {
            if let Some(blob) = self.open.find(digest) {
                let mut provenance = blob.opened.provenance.write().unwrap_or_else(PoisonError::into_inner);
                *provenance = label.provenance.clone();
            }
            // A file that is containerd's too gets no label: see `adopt.rs`.
            if let Ok(Some((file, metadata))) = self.layout.open_blob(digest)
                && metadata.nlink() == 1
            {
                label.write(&*self.disk, &file);
            }
        }
        if known_here {
            self.index.add_repository(digest, &delivery.registry, &delivery.repository);
        }
        known_here
    }

    /// Blocks on the disk.
    pub(super) fn usage(&self) -> Usage {
        self.usage_with(self.ingest_bytes())
    }

    fn usage_with(&self, ingest_bytes: u64) -> Usage {
        let (totals, _) = self.index.totals();
        let arriving: Vec<_> = held(&self.arriving).values().filter_map(Weak::upgrade).collect();
        Usage {
            blobs: totals.blobs,
            bytes: totals.bytes,
            shared_bytes: totals.shared_bytes,
            ingest_bytes,
            reserved_bytes: arriving.iter().map(|ingest| ingest.size()).sum(),
            disk: self.disk(),
            full: self.space.is_full(),
        }
    }
}

/// Whether a path still leads to a file.
fn is_at(file: &File, path: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| FileId::at(path).is_ok_and(|there| there == FileId::of(&metadata)))
}
