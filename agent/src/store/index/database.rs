use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::Database;
use tracing::{error, info, warn};

use super::file::{self, Trial};
use super::tables;
use crate::store::disk::Disk;
use crate::store::layout::FileId;

/// The database, wherever it is just now: at its path, in memory, or in a file that somebody deleted under us.
#[derive(Debug)]
pub(super) struct Home {
    disk: Arc<dyn Disk>,
    /// Where it belongs; `None` to stay in memory.
    path: Option<PathBuf>,
    open: RwLock<Open>,
    /// redb answers nothing more after a failed read or write, until it is opened again.
    failed: AtomicBool,
    /// The file was found damaged while it was used.
    damaged: AtomicBool,
}

#[derive(Debug, Default)]
struct Open {
    database: Option<Database>,
    file: Option<FileId>,
}

impl Home {
    pub(super) fn open(disk: Arc<dyn Disk>, path: Option<PathBuf>) -> Self {
        let (failed, damaged) = (AtomicBool::new(false), AtomicBool::new(false));
        let home = Self { disk, path, open: RwLock::default(), failed, damaged };
        home.open_with(file::open);
        home
    }

    /// Reads from the database. `None` when it can't be read: the writer opens it anew then.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Database) -> tables::Result<T>) -> Option<T> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        match read(open.database.as_ref()?) {
            Ok(value) => Some(value),
            Err(error) => {
                if !self.note_failure(&error) {
                    warn!(%error, "the index can't be read");
                }
                None
            }
        }
    }

    pub(super) fn write(&self, write: impl FnOnce(&Database) -> tables::Result<()>) -> tables::Result<()> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let written = open.database.as_ref().map_or(Err(redb::Error::DatabaseClosed), write);
        if let Err(error) = &written {
            self.note_failure(error);
        }
        written
    }

    /// Whether that was known.
    fn note_failure(&self, error: &redb::Error) -> bool {
        self.damaged.fetch_or(file::is_damage(error), Ordering::Relaxed);
        self.failed.swap(true, Ordering::Relaxed)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Opens the database anew; in memory where the file can't be opened.
    pub(super) fn reopen(&self) {
        let check = self.damaged.swap(false, Ordering::Relaxed);
        self.open_with(|disk, path| file::open_again(disk, path, check));
    }

    fn open_with(&self, open_file: impl FnOnce(&Arc<dyn Disk>, &Path) -> tables::Result<(Database, FileId)>) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // Two on one file at a time would overwrite each other.
        *open = Open::default();
        self.failed.store(false, Ordering::Relaxed);
        if let Some(path) = &self.path {
            match open_file(&self.disk, path) {
                Ok((database, file)) => {
                    *open = Open { database: Some(database), file: Some(file) };
                    return;
                }
                Err(error) => warn!(path = %path.display(), %error, "can't open the index: it stays in memory for now"),
            }
        }
        match file::in_memory() {
            Ok(database) => open.database = Some(database),
            // The store goes on without: every blob is hashed before use.
            Err(error) => error!(%error, "can't make an index in memory"),
        }
    }

    /// Brings the database back to its path, when it isn't there: it was in memory, or its file was deleted.
    pub(super) fn go_home(&self) -> tables::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let there = FileId::at(path).ok();
        if there.is_some() && there == self.open.read().unwrap_or_else(PoisonError::into_inner).file {
            return Ok(());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let (database, file) = file::open_again(&self.disk, path, false)?;
        if let Some(old) = &open.database {
            tables::copy(old, &database)?;
        }
        *open = Open { database: Some(database), file: Some(file) };
        self.failed.store(false, Ordering::Relaxed);
        Trial::passed(&self.disk, path);
        info!(path = %path.display(), "the index is back in its place");
        Ok(())
    }

    pub(super) fn passed_trial(&self) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let (Some(path), Some(_), false) = (&self.path, open.file, self.has_failed()) {
            Trial::passed(&self.disk, path);
        }
    }

    /// Closes it, in order.
    pub(super) fn close(&self) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let was_at_home = open.file.is_some() && !self.has_failed();
        *open = Open::default();
        if let (Some(path), true) = (&self.path, was_at_home) {
            Trial::over(&self.disk, path);
        }
    }
}
