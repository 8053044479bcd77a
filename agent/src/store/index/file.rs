use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadableDatabase, StorageBackend};
use tracing::{debug, info, warn};

use super::tables;
use crate::store::aside::step_aside;
use crate::store::disk::Disk;
use crate::store::layout::FileId;
use crate::store::record::TagRecord;

/// redb's own cache, in bytes; the kernel's is behind it.
const CACHE: usize = 2 << 20;
/// redb's pages, in bytes.
const PAGE: u64 = 4096;
/// How many are written, more or less, before others are let in.
const PAGES_IN_ONE_GO: u64 = 32;
/// After so many starts that died while they opened the index, it is the suspect, and is set aside. An opening takes
/// milliseconds: hardly anything else kills a process twice in it.
const MOST_OPENINGS: usize = 2;
/// The same for starts that died in their first seconds, while they went through it.
const MOST_STARTS: usize = 5;

/// The index file as redb's storage.
#[derive(Debug)]
struct IndexFile {
    disk: Arc<dyn Disk>,
    file: File,
}

impl StorageBackend for IndexFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(&self.file, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync(&self.file)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // A large batch has pages by the thousand. Not for each: who is never let in again writes nothing.
        if (offset / PAGE).is_multiple_of(PAGES_IN_ONE_GO) {
            step_aside();
        }
        self.disk.write_at(&self.file, offset, data)
    }
}

/// Opens the index at `path` for the first time in this process, as [`open_again`] does, but wary of an index that an
/// earlier process died over.
pub(super) fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Database, FileId), redb::Error> {
    let before = Trial::begin(disk, path);
    if before.openings >= MOST_OPENINGS || before.starts >= MOST_STARTS {
        set_aside(disk, path, "the agent died again and again while reading it")?;
    }
    let opened = open_again(disk, path, before.is_under_way)?;
    Trial::opened(disk, path);
    Ok(opened)
}

/// Opens the index at `path`, making it when missing, and setting it aside when it can't be an index of ours. `check`:
/// reads everything and compares it with its checksums first.
pub(super) fn open_again(disk: &Arc<dyn Disk>, path: &Path, check: bool) -> Result<(Database, FileId), redb::Error> {
    match try_open(disk, path, check) {
        Ok(Some(opened)) => return Ok(opened),
        Ok(None) => set_aside(disk, path, "it is of another version")?,
        Err(error) if is_damage(&error) => set_aside(disk, path, &error.to_string())?,
        Err(error) => return Err(error),
    }
    try_open(disk, path, false)?.ok_or_else(|| redb::Error::Corrupted("a new index is of another version".into()))
}

/// `None` for another schema.
fn try_open(disk: &Arc<dyn Disk>, path: &Path, check: bool) -> Result<Option<(Database, FileId)>, redb::Error> {
    let is_new = !path.exists();
    let file = disk.open(path)?;
    let id = FileId::of(&file.metadata()?);
    let mut builder = Database::builder();
    let backend = IndexFile { disk: Arc::clone(disk), file };
    let mut database = builder.set_cache_size(CACHE).create_with_backend(backend)?;
    if check {
        database.check_integrity()?;
    }
    let sound = tables::prepare(&database)?;
    if is_new && let Some(parent) = path.parent() {
        disk.sync_dir(parent)?;
    }
    Ok(sound.then_some((database, id)))
}

/// A database that lives as long as the process.
pub(super) fn in_memory() -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    let backend = redb::backends::InMemoryBackend::new();
    let database = builder.set_cache_size(CACHE).create_with_backend(backend)?;
    tables::prepare(&database)?;
    Ok(database)
}

/// The tags of an index that can only be read; none where it can't be.
pub(super) fn read_only_tags(path: &Path) -> Vec<(Vec<u8>, TagRecord)> {
    let read = || -> tables::Result<_> {
        tables::tags(&Database::builder().set_cache_size(CACHE).open_read_only(path)?.begin_read()?)
    };
    match read() {
        Ok(tags) => tags,
        Err(error) => {
            info!(path = %path.display(), %error, "the tags of the last run can't be read");
            Vec::new()
        }
    }
}

/// Whether an error says that the file is at fault, and not the disk.
pub(super) fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => {
            matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::IsADirectory
            )
        }
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) | redb::Error::RepairAborted => true,
        redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_) => true,
        _ => false,
    }
}

/// Where an index goes that can't be read.
pub(super) fn unreadable(index: &Path) -> PathBuf {
    index.with_extension("redb.unreadable")
}

fn set_aside(disk: &Arc<dyn Disk>, path: &Path, why: &str) -> Result<(), redb::Error> {
    let aside = unreadable(path);
    match disk.rename(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    warn!(path = %path.display(), aside = %aside.display(), why, "the index is set aside and built anew");
    Ok(())
}

/// Marks beside the index while it is open: an `o` before each opening, an `r` after it; one `p` in place of them all
/// when it was read from end to end. Marks that are found say that the last run did not end in order, and then the index
/// is checked in full before it is used: redb trusts much of its file, and some damage would make it panic, at every
/// start or at every write.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trial {
    is_under_way: bool,
    /// How many openings did not end.
    openings: usize,
    /// How many starts did not come through.
    starts: usize,
}

impl Trial {
    /// Where they are.
    pub(super) fn path(index: &Path) -> PathBuf {
        index.with_extension("trial")
    }

    /// Marks the beginning of an opening, and says what was before.
    fn begin(disk: &Arc<dyn Disk>, index: &Path) -> Self {
        let marks = fs::read(Self::path(index)).unwrap_or_default();
        let count = |mark: u8| marks.iter().filter(|is| **is == mark).count();
        Self::mark(disk, index, b'o');
        let (openings, starts) = (count(b'o').saturating_sub(count(b'r')), count(b'o'));
        Self { is_under_way: !marks.is_empty(), openings, starts }
    }

    fn opened(disk: &Arc<dyn Disk>, index: &Path) {
        Self::mark(disk, index, b'r');
    }

    pub(super) fn passed(disk: &Arc<dyn Disk>, index: &Path) {
        Self::over(disk, index);
        Self::mark(disk, index, b'p');
    }

    /// The index was closed in order.
    pub(super) fn over(disk: &Arc<dyn Disk>, index: &Path) {
        // Marks that stay cost a check at the next start.
        let _ = disk.unlink(&Self::path(index));
    }

    fn mark(disk: &Arc<dyn Disk>, index: &Path, mark: u8) {
        let path = Self::path(index);
        let marked = disk.open(&path).and_then(|file| {
            let end = file.metadata()?.len();
            disk.write_at(&file, end, &[mark])
        });
        if let Err(error) = marked {
            debug!(path = %path.display(), %error, "can't mark the index as being read");
        }
    }
}

/// The disk's own error behind one of redb's.
pub(super) fn disk_error(error: &redb::Error) -> Option<&io::Error> {
    match error {
        redb::Error::Io(error) => Some(error),
        _ => None,
    }
}
