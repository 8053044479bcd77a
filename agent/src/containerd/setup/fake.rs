//! Files that are nowhere but in a test.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::Files;

/// Texts by path; the folders above them are there too.
pub(crate) struct InMemory(BTreeMap<PathBuf, String>);

impl InMemory {
    pub(crate) fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(files.into_iter().map(|(path, text)| (path.into(), text.to_owned())).collect())
    }
}

impl Files for InMemory {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn names(&self, folder: &Path) -> Vec<String> {
        let name = |path: &PathBuf| {
            let below = path.strip_prefix(folder).ok()?;
            Some(below.components().next()?.as_os_str().to_string_lossy().into_owned())
        };
        let mut names: Vec<_> = self.0.keys().filter_map(name).collect();
        names.dedup();
        names
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.keys().any(|file| file.starts_with(path))
    }
}
