use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::error::FileError;

/// The most that is read of one file; real ones have a few KiB.
const MAX_FILE: u64 = 4 << 20;
/// How long a look may take before the last content is used in its place.
const PATIENCE: Duration = Duration::from_secs(2);
/// A file that was written so recently may be written once more without a new time of change.
const SETTLING: Duration = Duration::from_secs(2);

/// A file, or a folder of files, whose content is read anew when it changes. What can't be read or understood keeps
/// the last content that could, since a file may be seen half-written; what is gone has no content.
pub(super) struct Watched<T> {
    source: Source<T>,
    every: Duration,
    state: Mutex<State<T>>,
}

/// What was read of one file.
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) content: Zeroizing<Vec<u8>>,
}

/// The content of a file, and what in it can't be used: a line each, without secrets.
#[derive(Debug)]
pub(super) struct Parsed<T> {
    pub(super) value: T,
    pub(super) warnings: Vec<String>,
}

type Parse<T> = fn(&[Document]) -> Result<Parsed<T>, FileError>;

struct Source<T> {
    path: PathBuf,
    /// Whether a folder may stand in the place of the file.
    folders: bool,
    parse: Parse<T>,
}

struct State<T> {
    looked: Option<Instant>,
    /// What the files looked like when they were read last.
    stamp: Option<Stamp>,
    value: Option<Arc<T>>,
    complaint: Complaint,
    /// A look that takes too long. There is no second one before it has ended: a disk that hangs would get a thread for
    /// each.
    under_way: Option<JoinHandle<Look<T>>>,
}

/// What has been said in the log, so that it is said once.
#[derive(Debug, PartialEq, Eq)]
enum Complaint {
    None,
    Absent,
    Unusable,
    Partly(Vec<String>),
}

/// What a look found; without a stamp, the next look reads again whatever it sees.
enum Look<T> {
    Same,
    Absent,
    Unusable(Option<Stamp>, FileError),
    New(Option<Stamp>, Parsed<T>),
}

/// How files looked when they were read; those that haven't changed look the same.
type Stamp = Vec<Mark>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    path: PathBuf,
    inode: (u64, u64),
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Looks at one file, at most once in `every`.
    pub(super) fn file(path: PathBuf, every: Duration, parse: Parse<T>) -> Self {
        Self::new(Source { path, folders: false, parse }, every)
    }

    /// Looks at one file, or at all `.json`, `.yaml` and `.yml` files of a folder in the order of their names.
    pub(super) fn file_or_folder(path: PathBuf, every: Duration, parse: Parse<T>) -> Self {
        Self::new(Source { path, folders: true, parse }, every)
    }

    fn new(source: Source<T>, every: Duration) -> Self {
        let state = State { looked: None, stamp: None, value: None, complaint: Complaint::None, under_way: None };
        Self { source, every, state: Mutex::new(state) }
    }

    /// The content as it is now, or was when it could be read last. `None`: there is none.
    pub(super) async fn current(&self) -> Option<Arc<T>> {
        let mut state = self.state.lock().await;
        if state.looked.is_none_or(|at| at.elapsed() >= self.every) {
            // For one that hangs, who came before has waited.
            let (mut look, patience) = state.under_way.take().map_or_else(
                || {
                    let (source, known) = (self.source.clone(), state.stamp.clone());
                    (tokio::task::spawn_blocking(move || source.look(known.as_ref())), PATIENCE)
                },
                |look| (look, Duration::ZERO),
            );
            match timeout(patience, &mut look).await {
                Ok(Ok(found)) => state.take(found, &self.source.path),
                // The runtime ends.
                Ok(Err(_)) => {}
                Err(_) => {
                    let hangs = FileError::Hangs { path: self.source.path.clone(), after: PATIENCE };
                    let stamp = state.stamp.take();
                    state.take(Look::Unusable(stamp, hangs), &self.source.path);
                    state.under_way = Some(look);
                }
            }
            state.looked = Some(Instant::now());
        }
        state.value.clone()
    }
}

impl<T> State<T> {
    fn take(&mut self, found: Look<T>, path: &Path) {
        match found {
            Look::Same => {}
            Look::Absent => {
                (self.stamp, self.value) = (None, None);
                if self.complaint != Complaint::Absent {
                    tracing::warn!(file = %path.display(), "no such file: nothing in it is used");
                    self.complaint = Complaint::Absent;
                }
            }
            Look::Unusable(stamp, error) => {
                self.stamp = stamp;
                if self.complaint != Complaint::Unusable {
                    let kept = self.value.is_some();
                    tracing::warn!(file = %path.display(), error = %error, kept, "unusable: what was read before is kept");
                    self.complaint = Complaint::Unusable;
                }
            }
            Look::New(stamp, Parsed { value, warnings }) => {
                (self.stamp, self.value) = (stamp, Some(Arc::new(value)));
                let complaint = if warnings.is_empty() { Complaint::None } else { Complaint::Partly(warnings) };
                if self.complaint != complaint {
                    match &complaint {
                        Complaint::Partly(warnings) => {
                            for warning in warnings {
                                tracing::warn!(file = %path.display(), "{warning}");
                            }
                        }
                        _ => tracing::info!(file = %path.display(), "read anew, and all of it is used"),
                    }
                    self.complaint = complaint;
                }
            }
        }
    }
}

impl<T> Source<T> {
    /// Reads what has changed since `known`. Blocks.
    fn look(&self, known: Option<&Stamp>) -> Look<T> {
        let marks = match self.marks() {
            Ok(Some(marks)) => marks,
            Ok(None) => return Look::Absent,
            Err(e) => return Look::Unusable(None, e),
        };
        if known == Some(&marks) {
            return Look::Same;
        }
        // Judged before the content is read: what is written from here on is a change.
        let now = SystemTime::now();
        let settled = marks.iter().all(|mark| mark.is_settled(now));
        let read = marks.iter().map(|mark| read(&mark.path)).collect::<Result<Vec<_>, _>>();
        let stamp = settled.then_some(marks);
        match read.and_then(|documents| (self.parse)(&documents)) {
            Ok(parsed) => Look::New(stamp, parsed),
            Err(e) => Look::Unusable(stamp, e),
        }
    }

    /// What is to be read. `None`: nothing is there.
    fn marks(&self) -> Result<Option<Vec<Mark>>, FileError> {
        let unreadable = |path: &Path, source| FileError::Read { path: path.to_owned(), source };
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unreadable(&self.path, e)),
        };
        if !(self.folders && metadata.is_dir()) {
            return Ok(Some(vec![Mark::of(self.path.clone(), &metadata)]));
        }
        let mut marks = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|e| unreadable(&self.path, e))? {
            let path = entry.map_err(|e| unreadable(&self.path, e))?.path();
            let wanted = path.extension().is_some_and(|end| end == "json" || end == "yaml" || end == "yml");
            if !wanted {
                continue;
            }
            let metadata = fs::metadata(&path).map_err(|e| unreadable(&path, e))?;
            if !metadata.is_dir() {
                marks.push(Mark::of(path, &metadata));
            }
        }
        if marks.is_empty() {
            return Err(FileError::EmptyFolder { path: self.path.clone() });
        }
        marks.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Some(marks))
    }
}

fn read(path: &Path) -> Result<Document, FileError> {
    let mut content = Zeroizing::new(Vec::new());
    let unreadable = |source| FileError::Read { path: path.to_owned(), source };
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content)).map_err(unreadable)?;
    if content.len() as u64 > MAX_FILE {
        return Err(FileError::TooLarge { path: path.to_owned(), most: MAX_FILE });
    }
    Ok(Document { path: path.to_owned(), content })
}

impl Mark {
    fn of(path: PathBuf, metadata: &Metadata) -> Self {
        Self {
            path,
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// Whether another change would show in the time of change. A time in the future says nothing, and is believed.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (secs, nanos) = self.modified;
        let since = u64::try_from(secs).ok().zip(u32::try_from(nanos).ok());
        let modified = since.map(|(secs, nanos)| UNIX_EPOCH + Duration::new(secs, nanos));
        modified.and_then(|at| now.duration_since(at).ok()).is_none_or(|age| age >= SETTLING)
    }
}

impl<T> Clone for Source<T> {
    fn clone(&self) -> Self {
        Self { path: self.path.clone(), folders: self.folders, parse: self.parse }
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("path", &self.source.path).finish_non_exhaustive()
    }
}
