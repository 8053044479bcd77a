//! What containerd holds, taken into the store without a second copy of its bytes.
//!
//! A committed file of containerd's is never written again, and synced: so it may have a name of ours as well. It is
//! linked to a name below `ingest/` first, hashed through that name, and renamed to its blob's name when it is what it
//! should be; where the store has a copy of its own already, that copy's checksums do for the hash, the rename replaces
//! it, and who reads it reads on. A crash at any instant leaves the old state or the new one, and perhaps a name below
//! `ingest/`, which the next start removes.
//!
//! Two things are never done to a file of containerd's: it is not synced, and it gets no label. An extended attribute
//! is the file's and not the name's: ours would outlive the cache in a folder that isn't ours. It is written when
//! containerd has given the file up (`release.rs`); until then the index alone knows where the bytes came from, and
//! where it is lost the next adoption says it again.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{debug, info, warn};

use super::errors::AdoptError;
use super::handle::Store;
use super::index::Change;
use super::label::Label;
use super::layout::{FileId, open_regular};
use super::locks::held;
use super::mend::modified;
use super::record::{BlobRecord, Hold, State};
use super::shelves::Shelves;
use super::space::Standing;
use super::verify::Hurry;
use crate::image::{Digest, MediaType, Registry, Repository};

/// How many files that are not what their names say are remembered, so that nobody hashes them again and again.
const MOST_WRONG: usize = 4096;

/// One blob as containerd has it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its file, by a path that leads to it here.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// What a manifest calls it, if that is known.
    pub media_type: Option<MediaType>,
    /// The repositories that containerd names for it. That they delivered it is not said with it.
    pub sources: Vec<(Registry, Repository)>,
}

/// How a blob of containerd's came into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Adopted {
    /// Its file has a name of ours now. A copy of our own gave way to it.
    Linked,
    /// A file of ours shares its extents. A copy of our own gave way to it.
    Reflinked,
    /// It is served from where it is: the two folders have no filesystem in common that could do better.
    LeftInPlace,
    /// It was in the store already, by one of these ways; or as a copy of our own, and can't be linked.
    Already,
}

/// What is known of the chunks of a file of containerd's before it is read.
enum Told {
    Nothing,
    /// Proven of this very file, when it was left in place: it needs no second proof.
    OfThis(Arc<[u32]>),
    /// Of a sound copy of our own. Reads hold each chunk against no more than these; a hash costs several times as much.
    OfOurs(Arc<[u32]>),
}

/// A file of containerd's under a name of ours that nobody knows yet.
struct Brought {
    path: PathBuf,
    file: File,
    is_link: bool,
}

/// A file as it was seen: its number may come to be another's, of another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    file: FileId,
    modified: (i64, i64),
}

impl Seen {
    fn of(metadata: &Metadata) -> Self {
        Self { file: FileId::of(metadata), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// A file of containerd's, open.
struct Theirs<'a> {
    found: &'a Found,
    file: File,
    metadata: Metadata,
}

impl Store {
    /// Takes in a blob that containerd holds: linked, else reflinked, else left in place and served from there. It is
    /// hashed before it counts, one at a time and stepping back for pulls, so this takes as long as it takes: whoever has
    /// a deadline sets it around this call, and the work goes on.
    ///
    /// # Errors
    /// When the file isn't there, is something else, or can't be read. Nothing has changed then.
    pub async fn adopt(&self, digest: &Digest, found: Found) -> Result<Adopted, AdoptError> {
        let (shelves, digest) = (Arc::clone(self.shelves()), *digest);
        let Ok(turn) = Arc::clone(&shelves.adopting).acquire_owned().await else { return Err(AdoptError::Ending) };
        // Not one of the `hands`: hashing a large blob takes longer than a disk may take to answer.
        let adopted = tokio::task::spawn_blocking(move || {
            let adopted = shelves.adopt(&digest, &found);
            drop(turn);
            adopted
        });
        adopted.await.unwrap_or(Err(AdoptError::Ending))
    }
}

impl Shelves {
    fn adopt(&self, digest: &Digest, found: &Found) -> Result<Adopted, AdoptError> {
        if self.space.standing() == Standing::Absent {
            return Err(AdoptError::NoFolder);
        }
        let theirs = Theirs::open(found)?;
        let id = FileId::of(&theirs.metadata);
        if held(&self.known_wrong).get(digest) == Some(&Seen::of(&theirs.metadata)) {
            return Err(AdoptError::Wrong { path: found.path.clone(), digest: *digest });
        }
        let ours = self.layout.open_blob(digest).ok().flatten().map(|(_, metadata)| metadata);
        let row = self.index.row(digest);
        if let (Some(ours), Some(row)) = (&ours, &row) {
            let is_same = FileId::of(ours) == id || row.record.hold == Hold::Cloned;
            if is_same && self.is_sound(row, ours) {
                return Ok(self.adopted_already(digest, found));
            }
        }
        let told = match &row {
            Some(row)
                if matches!(row.record.state, State::Theirs { .. })
                    && matches!(&row.record.hold, Hold::InPlace(path) if *path == found.path)
                    && self.is_sound(row, &theirs.metadata) =>
            {
                Told::OfThis(Arc::clone(&row.checksums))
            }
            Some(row) if ours.as_ref().is_some_and(|ours| self.is_sound(row, ours)) => {
                Told::OfOurs(Arc::clone(&row.checksums))
            }
            _ => Told::Nothing,
        };
        let was_left = matches!(told, Told::OfThis(_));
        let adopted = match self.bring(digest, &theirs)? {
            Some(brought) => self.take_in(digest, &theirs, &brought, told).inspect_err(|_| {
                let _ = self.disk.unlink(&brought.path);
            })?,
            None if was_left || ours.is_some() => return Ok(self.adopted_already(digest, found)),
            None => {
                let checksums = self.checksums_of(digest, &theirs.file, &theirs)?;
                self.leave_in_place(digest, &theirs, checksums)?
            }
        };
        self.note_sources(digest, found);
        if self.index.last_used(digest) == 0 {
            // Without a time it would never be evicted. containerd stamps a file when it has committed it.
            self.index.set_used(digest, modified(&theirs.metadata).max(1));
        }
        held(&self.known_wrong).remove(digest);
        self.metrics.count_adoption(adopted);
        self.show_totals();
        debug!(%digest, size = found.size, how = ?adopted, "adopted");
        Ok(adopted)
    }

    fn adopted_already(&self, digest: &Digest, found: &Found) -> Adopted {
        self.note_sources(digest, found);
        Adopted::Already
    }

    fn note_sources(&self, digest: &Digest, found: &Found) {
        for (registry, repository) in &found.sources {
            self.index.add_repository(digest, registry, repository);
        }
    }

    /// Gives their file a name of ours, or makes one that shares its extents. `None` where neither can be done.
    fn bring(&self, digest: &Digest, theirs: &Theirs<'_>) -> Result<Option<Brought>, AdoptError> {
        if self.space.standing() != Standing::Writable {
            return Ok(None);
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let path = self.layout.adopting(self.run, number);
        let from = &theirs.found.path;
        let linked = match self.disk.link(from, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.keep_folder();
                self.disk.link(from, &path)
            }
            other => other,
        };
        let why = match linked {
            Ok(()) => match open_regular(&path) {
                // The name may have come to mean another file since it was opened.
                Ok(Some((file, metadata))) if FileId::of(&metadata) == FileId::of(&theirs.metadata) => {
                    return Ok(Some(Brought { path, file, is_link: true }));
                }
                _ => {
                    let _ = self.disk.unlink(&path);
                    return Err(AdoptError::Gone { path: from.clone() });
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => {
                return Err(AdoptError::Gone { path: from.clone() });
            }
            Err(error) => error,
        };
        match self.disk.reflink(&theirs.file, &path) {
            Ok(file) => Ok(Some(Brought { path, file, is_link: false })),
            Err(error) => {
                if !self.left_in_place.swap(true, Ordering::Relaxed) {
                    info!(
                        theirs = %from.display(), cache = %self.layout.root().display(), link = %why, reflink = %error,
                        "what containerd holds can't be linked into the cache: it is used where it is, and gone when containerd drops it"
                    );
                }
                debug!(%digest, link = %why, reflink = %error, "a blob of containerd's can't be linked");
                Ok(None)
            }
        }
    }

    /// Puts what was brought in its blob's place, once it is proven.
    fn take_in(
        &self,
        digest: &Digest,
        theirs: &Theirs<'_>,
        brought: &Brought,
        told: Told,
    ) -> Result<Adopted, AdoptError> {
        let checksums = match told {
            Told::OfThis(checksums) => checksums,
            Told::OfOurs(checksums) if self.is_alike(&brought.file, &checksums, theirs)? => checksums,
            Told::OfOurs(_) | Told::Nothing => self.checksums_of(digest, &brought.file, theirs)?,
        };
        let to = self.layout.blob(digest);
        let io = |path: &PathBuf, source| AdoptError::Io { path: path.clone(), source };
        let inode = brought.file.metadata().map_err(|source| io(&brought.path, source))?.ino();
        let name = self.hold_name(digest);
        // Held until the name is free again: to give back the bytes of a large file can take long.
        let before = self.layout.open_blob(digest).ok().flatten();
        let is_there =
            before.as_ref().is_some_and(|(_, metadata)| FileId::of(metadata) == FileId::of(&theirs.metadata));
        let known = self.index.record(digest);
        let (state, hold) = if brought.is_link {
            (State::Theirs { inode }, Hold::Linked)
        } else {
            (State::Unsynced(self.boot), Hold::Cloned)
        };
        let mut record = adopted_record(known, theirs.found, state, hold);
        if is_there {
            // Only its record was lost. To rename a file to another name of its own does nothing.
            let _ = self.disk.unlink(&brought.path);
        } else {
            if !brought.is_link {
                Label::of(&record).write(&*self.disk, &brought.file);
                self.index.forget_durably(digest);
            }
            let renamed = match self.disk.rename(&brought.path, &to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.keep_folder();
                    self.disk.rename(&brought.path, &to)
                }
                other => other,
            };
            renamed.map_err(|source| {
                self.space.note(&source);
                io(&to, source)
            })?;
        }
        if brought.is_link && brought.file.metadata().is_ok_and(|metadata| metadata.nlink() == 1) {
            // containerd dropped it meanwhile.
            record.hold = Hold::Own;
            Label::of(&record).write(&*self.disk, &brought.file);
        }
        held(&self.shunned).remove(digest);
        self.index.update(digest, |_| Change::Put(record.clone(), Some(Arc::clone(&checksums))));
        self.open.forget(digest);
        drop(name);
        if !brought.is_link {
            self.to_sync.push(digest);
        }
        if let Some((file, _)) = before.filter(|_| !is_there) {
            drop(file);
            self.space.freed();
        }
        Ok(if brought.is_link { Adopted::Linked } else { Adopted::Reflinked })
    }

    fn leave_in_place(
        &self,
        digest: &Digest,
        theirs: &Theirs<'_>,
        checksums: Arc<[u32]>,
    ) -> Result<Adopted, AdoptError> {
        let path = &theirs.found.path;
        let _name = self.hold_name(digest);
        if FileId::at(path).ok() != Some(FileId::of(&theirs.metadata)) {
            return Err(AdoptError::Gone { path: path.clone() });
        }
        if matches!(self.layout.open_blob(digest), Ok(Some(_))) {
            // It came by itself meanwhile.
            return Ok(Adopted::Already);
        }
        let state = State::Theirs { inode: theirs.metadata.ino() };
        let record = adopted_record(self.index.record(digest), theirs.found, state, Hold::InPlace(path.clone()));
        held(&self.shunned).remove(digest);
        self.index.update(digest, |_| Change::Put(record, Some(checksums)));
        self.open.forget(digest);
        Ok(Adopted::LeftInPlace)
    }

    /// Whether a file has the checksums of the copy that it is to replace.
    fn is_alike(&self, file: &File, checksums: &[u32], theirs: &Theirs<'_>) -> Result<bool, AdoptError> {
        let alike = self.has_checksums(file, checksums, theirs.metadata.len(), Hurry::CanWait);
        let alike = alike.map_err(|source| AdoptError::Io { path: theirs.found.path.clone(), source })?;
        alike.ok_or(AdoptError::Ending)
    }

    /// Hashes a file; the checksums of its chunks, if it is what its name says.
    fn checksums_of(&self, digest: &Digest, file: &File, theirs: &Theirs<'_>) -> Result<Arc<[u32]>, AdoptError> {
        let path = &theirs.found.path;
        match self.hash(file, digest, theirs.metadata.len(), Hurry::CanWait) {
            Ok(Some((hashed, checksums))) if hashed == *digest => Ok(checksums.into()),
            Ok(Some((hashed, _))) => {
                warn!(%digest, %hashed, path = %path.display(), "a file of containerd's is not what its name says: it is left alone");
                let mut wrong = held(&self.known_wrong);
                if wrong.len() < MOST_WRONG {
                    wrong.insert(*digest, Seen::of(&theirs.metadata));
                }
                drop(wrong);
                self.metrics.adoptions_wrong.inc();
                Err(AdoptError::Wrong { path: path.clone(), digest: *digest })
            }
            Ok(None) => Err(AdoptError::Ending),
            Err(source) => Err(AdoptError::Io { path: path.clone(), source }),
        }
    }
}

impl<'a> Theirs<'a> {
    fn open(found: &'a Found) -> Result<Self, AdoptError> {
        let path = &found.path;
        let opened = open_regular(path).map_err(|source| AdoptError::Io { path: path.clone(), source })?;
        let (file, metadata) = opened.ok_or_else(|| AdoptError::Gone { path: path.clone() })?;
        if metadata.len() != found.size {
            return Err(AdoptError::Size { path: path.clone(), size: metadata.len(), expected: found.size });
        }
        Ok(Self { found, file, metadata })
    }
}

fn adopted_record(known: Option<BlobRecord>, found: &Found, state: State, hold: Hold) -> BlobRecord {
    let (media_type, provenance) = known.map_or_else(Default::default, |known| (known.media_type, known.provenance));
    let media_type = media_type.or_else(|| found.media_type.clone());
    BlobRecord { size: found.size, state, hold, media_type, provenance }
}
