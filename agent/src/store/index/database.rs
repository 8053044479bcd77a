use std::path::PathBuf;
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
}

#[derive(Debug, Default)]
struct Open {
    database: Option<Database>,
    file: Option<FileId>,
}

impl Home {
    pub(super) fn open(disk: Arc<dyn Disk>, path: Option<PathBuf>) -> Self {
        let home = Self { disk, path, open: RwLock::default(), failed: AtomicBool::new(false) };
        home.reopen();
        home
    }

    /// Reads from the database. `None` when it can't be read: the writer opens it anew then.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Database) -> tables::Result<T>) -> Option<T> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        match read(open.database.as_ref()?) {
            Ok(value) => Some(value),
            Err(error) => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    warn!(%error, "the index can't be read");
                }
                None
            }
        }
    }

    pub(super) fn write(&self, write: impl FnOnce(&Database) -> tables::Result<()>) -> tables::Result<()> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let written = open.database.as_ref().map_or(Err(redb::Error::DatabaseClosed), write);
        if written.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        written
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Opens the database anew; in memory where the file can't be opened.
    pub(super) fn reopen(&self) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // Two on one file at a time would overwrite each other.
        *open = Open::default();
        self.failed.store(false, Ordering::Relaxed);
        if let Some(path) = &self.path {
            match file::open(&self.disk, path) {
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
        let (database, file) = file::open(&self.disk, path)?;
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
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Open::default();
    }
}
