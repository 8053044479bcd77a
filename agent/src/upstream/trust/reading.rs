use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::Unreadable;
use super::links::follow;
use super::places::Search;

/// No bundle is larger: all that there are come to half a megabyte.
const MAX_BYTES: u64 = 8 << 20;
/// No folder has more.
const MAX_FILES: usize = 4096;
/// More faults than this say nothing new.
const MAX_FAULTS: usize = 8;

/// The authorities of the first search that found any.
pub(super) struct Read {
    pub(super) roots: RootCertStore,
    /// The files and folders that they came from.
    pub(super) places: Vec<PathBuf>,
    pub(super) unreadable: Vec<Unreadable>,
    pub(super) is_by_variable: bool,
}

/// What is different when a file is replaced or written.
type Stamp = (PathBuf, u64, u64, u64, Option<SystemTime>);

/// Reads what the searches find.
pub(super) fn read(searches: &[Search]) -> Read {
    let nothing = || Read {
        roots: RootCertStore::empty(),
        places: Vec::new(),
        unreadable: Vec::new(),
        is_by_variable: searches.iter().any(|search| search.is_by_variable),
    };
    let mut faults = Vec::new();
    for search in searches {
        let mut reader = Reader { search, read: nothing(), files: HashSet::new(), known: HashSet::new() };
        reader.bundles();
        reader.folders();
        let mut read = reader.read;
        if !read.roots.is_empty() {
            read.unreadable.truncate(MAX_FAULTS);
            return read;
        }
        faults.append(&mut read.unreadable);
    }
    faults.truncate(MAX_FAULTS);
    Read { unreadable: faults, ..nothing() }
}

/// The state of every file that a search would read.
pub(super) fn stamps(searches: &[Search]) -> Vec<Stamp> {
    let of_search = |search: &Search| {
        let listed = search.folders.iter().flat_map(|folder| names(search, folder).unwrap_or_default());
        let paths = search.bundles.iter().cloned().chain(listed);
        paths.filter_map(|path| stamp(&search.root, path)).collect::<Vec<_>>()
    };
    searches.iter().flat_map(of_search).collect()
}

fn stamp(root: &Path, path: PathBuf) -> Option<Stamp> {
    let metadata = follow(root, &path).and_then(fs::metadata).ok()?;
    Some((path, metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok()))
}

/// The files of a folder, as paths of the search.
fn names(search: &Search, folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(follow(&search.root, folder)?)?;
    let mut names: Vec<_> = entries.flatten().map(|entry| folder.join(entry.file_name())).take(MAX_FILES).collect();
    names.sort();
    Ok(names)
}

struct Reader<'a> {
    search: &'a Search,
    read: Read,
    /// Those that were read already, by whatever links lead to them.
    files: HashSet<PathBuf>,
    /// The certificates that were there already.
    known: HashSet<CertificateDer<'static>>,
}

impl Reader<'_> {
    fn bundles(&mut self) {
        for path in &self.search.bundles {
            match self.file(path) {
                Ok(0) if self.search.is_by_variable => self.fault(path, &"it has no certificate", None),
                Ok(0) => {}
                Ok(_) => {
                    self.place(path);
                    return;
                }
                Err(error) => self.unread(path, &error),
            }
        }
    }

    fn folders(&mut self) {
        for folder in &self.search.folders {
            let names = match names(self.search, folder) {
                Ok(names) => names,
                Err(error) => {
                    self.unread(folder, &error);
                    continue;
                }
            };
            let (mut taken, mut target) = (0, None);
            for path in names {
                match self.file(&path) {
                    Ok(new) => taken += new,
                    Err(_) if target.is_none() => target = self.dangling(&path),
                    Err(_) => {}
                }
            }
            if taken > 0 {
                self.place(folder);
            }
            // Links that dangle are the rule where only their own folder is mounted, and the bundle has what they mean.
            if let Some(target) = target.filter(|_| self.read.roots.is_empty()) {
                self.fault(
                    folder,
                    &format!("its files are links to {}, which isn't there", target.display()),
                    Some(target),
                );
            }
        }
    }

    /// Takes what a file has, and says how many are new. Anything but certificates is passed over.
    fn file(&mut self, path: &Path) -> io::Result<usize> {
        let file = follow(&self.search.root, path)?;
        if !self.files.insert(file.clone()) {
            return Ok(0);
        }
        // A pipe or a device would hold us up.
        if !fs::metadata(&file)?.is_file() {
            return Ok(0);
        }
        let mut bytes = Vec::new();
        fs::File::open(&file)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
        let mut taken = 0;
        for certificate in CertificateDer::pem_slice_iter(&bytes).map_while(Result::ok) {
            if self.known.insert(certificate.clone()) && self.read.roots.add(certificate).is_ok() {
                taken += 1;
            }
        }
        Ok(taken)
    }

    fn place(&mut self, path: &Path) {
        let below = path.strip_prefix("/").unwrap_or(path);
        self.read.places.push(self.search.root.join(below));
    }

    /// That a known place isn't there is no fault: each distribution has its own.
    fn unread(&mut self, path: &Path, error: &io::Error) {
        let is_absent = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        if let Some(target) = self.dangling(path).filter(|_| is_absent) {
            self.fault(path, &format!("it is a link to {}, which isn't there", target.display()), Some(target));
        } else if self.search.is_by_variable || !is_absent {
            self.fault(path, &error, None);
        }
    }

    /// Where a path's own link leads to, as the host would have it.
    fn dangling(&self, path: &Path) -> Option<PathBuf> {
        let folder = follow(&self.search.root, path.parent()?).ok()?;
        let target = fs::read_link(folder.join(path.file_name()?)).ok()?;
        let below = Path::new("/").join(folder.strip_prefix(&self.search.root).ok()?);
        let mut plain = PathBuf::new();
        for component in below.join(target).components() {
            match component {
                Component::ParentDir => drop(plain.pop()),
                other => plain.push(other),
            }
        }
        Some(plain)
    }

    fn fault(&mut self, path: &Path, reason: &dyn ToString, leads_to: Option<PathBuf>) {
        let below = path.strip_prefix("/").unwrap_or(path);
        let path = self.search.root.join(below);
        self.read.unreadable.push(Unreadable { path, reason: reason.to_string(), leads_to });
    }
}
