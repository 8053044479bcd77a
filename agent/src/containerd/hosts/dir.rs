use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::adopt::{self, Adopted};
use super::compose::Mirror;
use super::error::{HostsError, Warning};
use super::folder::{self, Folder, Undone};
use super::metrics::Metrics;
use super::root::{self, Root};
use super::show::{self, Shown};
use super::targets;
use super::template::Templates;
use crate::config::{HostsTarget, reachable};
use crate::containerd::client::Version;

/// containerd reads a hosts.toml, then the system's authorities, then the certificates that the file names: `ctr` of 1.6
/// needs a tenth of a second from the first to the last where there is much to do. Nobody reads where our tests write.
const READERS: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };

/// What is to stand in the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where the mirror listens. For an unspecified address the loopback address of its family is written.
    pub listen: SocketAddr,
    /// The CA of the mirror's certificate as PEM, or several while one replaces another. `None`: plain HTTP.
    pub ca_pem: Option<String>,
    /// The containerd that will read them, where [`Entry::depends_on_reader`]; `None` is taken for one that can.
    pub reader: Option<Version>,
}

/// The first that can read a table's name with a bracket in it.
const READS_BRACKETS: Version = Version::new(2, 0, 0);

/// containerd's `hosts_dir`, and what we want in it.
pub struct HostsDir {
    dir: PathBuf,
    targets: Vec<HostsTarget>,
    templates: Templates,
    metrics: Metrics,
}

/// What [`HostsDir::apply`] did.
#[derive(Debug, Default)]
pub struct Applied {
    /// The folders that have our entry, and those from which it went; by name.
    pub folders: Vec<AppliedFolder>,
}

/// One folder.
#[derive(Debug)]
pub struct AppliedFolder {
    /// Its name, as in `certs.d`.
    pub name: String,
    /// What was done, or why it couldn't be. The other folders are done nevertheless.
    pub outcome: Result<Outcome, HostsError>,
    /// What a person should know.
    pub warnings: Vec<Warning>,
}

/// What was done to a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Our entry was written.
    Written,
    /// It stood there already.
    Unchanged,
    /// The folder is none of the targets any more: our entry was taken back.
    Restored,
}

/// What [`HostsDir::restore`] did.
#[derive(Debug, Default)]
pub struct Restored {
    /// The folders that had something of ours; by name.
    pub folders: Vec<RestoredFolder>,
    /// Whether `hosts_dir` itself was ours and is gone.
    pub removed_dir: bool,
}

/// One folder.
#[derive(Debug)]
pub struct RestoredFolder {
    /// Its name.
    pub name: String,
    /// What was done, or why it couldn't be.
    pub outcome: Result<Undone, HostsError>,
}

impl Entry {
    /// Whether not every containerd can read what will stand there for this address.
    #[must_use]
    pub const fn depends_on_reader(listen: SocketAddr) -> bool {
        listen.is_ipv6()
    }

    fn is_readable(&self) -> bool {
        !Self::depends_on_reader(self.listen) || self.reader.is_none_or(|reader| reader >= READS_BRACKETS)
    }
}

impl HostsDir {
    /// Reads and checks the templates; looks at nothing else yet.
    ///
    /// # Errors
    /// A template that can't be read, or makes no sound host table.
    pub fn new(dir: PathBuf, targets: Vec<HostsTarget>, templates: Option<&Path>) -> Result<Self, HostsError> {
        Ok(Self { dir, targets, templates: Templates::load(templates)?, metrics: Metrics::default() })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is counted here.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn count_rewrite(&self) {
        self.metrics.rewrites.inc();
    }

    /// Brings every folder to what it should be. Blocking: call it where that is allowed; it waits up to 10 s for
    /// another process that does the same. Nothing is written where everything stands as it should.
    ///
    /// # Errors
    /// What concerns all folders: a containerd that couldn't read the entry, the templates, the CA, `hosts_dir` itself.
    /// The rest is told folder by folder.
    pub fn apply(&self, entry: &Entry) -> Result<Applied, HostsError> {
        let mirror = self.mirror(entry)?;
        if self.targets.is_empty() && !self.dir.exists() {
            return Ok(Applied::default());
        }
        let root = Root::open_or_make(&self.dir)?;
        root.clear()?;
        let existing = root.names()?;
        let mut wanted = targets::folders(&existing, &self.targets);
        wanted.extend(sharers(&root, &existing, &wanted));

        // In three rounds, each over all folders: the CAs, the files, the CAs that no file names any more.
        let mut brought: BTreeMap<&str, Result<bool, HostsError>> = wanted
            .iter()
            .filter(|name| root.folder(name).path().is_dir())
            .map(|name| (name.as_str(), root.folder(name).bring_ca(&mirror)))
            .collect();
        let mut folders: Vec<AppliedFolder> = Vec::new();
        for name in &wanted {
            let mut warnings = Vec::new();
            let outcome = match brought.remove(name.as_str()).unwrap_or(Ok(false)) {
                Ok(brought) => apply(&root, name, existing.contains(name), &mirror, &mut warnings)
                    .map(|outcome| if brought { Outcome::Written } else { outcome }),
                Err(e) => Err(e),
            };
            folders.push(AppliedFolder { name: name.clone(), outcome, warnings });
        }
        let dropped = TakenBack::begin(&root, existing.difference(&wanted));
        let unnamed = wanted.iter().filter(|_| mirror.ca.is_none());
        // For all of them at once: nobody waits twice.
        let_readers_finish(&root, dropped.names.iter().copied().chain(unnamed));
        folders.extend(dropped.finish(&root).into_iter().map(|RestoredFolder { name, outcome }| AppliedFolder {
            name,
            outcome: outcome.map(|_| Outcome::Restored),
            warnings: vec![],
        }));
        for folder in folders.iter_mut().filter(|f| matches!(f.outcome, Ok(Outcome::Restored)) || mirror.ca.is_none()) {
            match root.folder(&folder.name).drop_ca() {
                Ok(false) => {}
                Ok(true) if matches!(folder.outcome, Ok(Outcome::Unchanged)) => folder.outcome = Ok(Outcome::Written),
                Ok(true) => {}
                Err(e) => folder.outcome = Err(e),
            }
        }
        folders.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Applied { folders })
    }

    /// Puts everything back as it was, byte for byte, and removes only what is ours. Needs nothing but the folder.
    /// Blocking, as [`Self::apply`] is.
    ///
    /// # Errors
    /// What concerns all folders. The rest is told folder by folder.
    pub fn restore(dir: &Path) -> Result<Restored, HostsError> {
        let Some(root) = Root::open(dir)? else {
            root::clear_beside(dir)?;
            return Ok(Restored::default());
        };
        root.clear()?;
        let names = root.names()?;
        let taken_back = TakenBack::begin(&root, &names);
        let_readers_finish(&root, &names);
        let mut restored = Restored { folders: taken_back.finish(&root), ..Restored::default() };
        for folder in &mut restored.folders {
            if let Err(e) = root.folder(&folder.name).drop_ca() {
                folder.outcome = Err(e);
            }
        }
        if restored.folders.iter().all(|folder| folder.outcome.is_ok()) {
            restored.removed_dir = root.remove_if_made()?;
        }
        root::clear_beside(dir)?;
        Ok(restored)
    }

    /// The files of ours that stand there, what a crash left half done among them: what [`Self::restore`] would take
    /// back. Blocking.
    ///
    /// # Errors
    /// When `hosts_dir` or a folder in it can't be read.
    pub fn traces(dir: &Path) -> Result<Vec<PathBuf>, HostsError> {
        let mut traces = root::traces(dir);
        if !dir.exists() {
            return Ok(traces);
        }
        for name in root::names(dir)? {
            traces.extend(Folder::new(dir.join(name)).traces()?);
        }
        Ok(traces)
    }

    /// What stands there, folder by folder; nothing for a missing `hosts_dir`. Blocking.
    ///
    /// # Errors
    /// When `hosts_dir` can't be read. What can't be read in it is told in its place.
    pub fn show(dir: &Path) -> Result<Vec<Shown>, HostsError> {
        show::show(dir)
    }

    /// The user's own mirrors, as upstreams; never a host that is the mirror which listens at `listen`. Blocking.
    ///
    /// # Errors
    /// When `hosts_dir` can't be read. What can't be used in it is told in its place.
    pub fn adopted(dir: &Path, listen: SocketAddr) -> Result<Adopted, HostsError> {
        adopt::adopted(dir, listen)
    }

    fn mirror(&self, entry: &Entry) -> Result<Mirror, HostsError> {
        if !entry.is_readable() {
            return Err(HostsError::Bracket);
        }
        let address = reachable(entry.listen);
        let (url, table) = match &entry.ca_pem {
            Some(pem) => {
                folder::check_pem(pem)?;
                let url = format!("https://{address}");
                (url.clone(), self.templates.https(&url, folder::CA)?)
            }
            None => {
                let url = format!("http://{address}");
                (url.clone(), self.templates.http(&url)?)
            }
        };
        Ok(Mirror { url, table, ca: entry.ca_pem.clone() })
    }
}

impl fmt::Debug for HostsDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostsDir").field("dir", &self.dir).field("targets", &self.targets).finish_non_exhaustive()
    }
}

impl Applied {
    /// Whether anything was written or taken back.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.folders.iter().any(|f| matches!(f.outcome, Ok(Outcome::Written | Outcome::Restored)))
    }

    /// The folders that could not be done, with the reason.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &HostsError)> {
        self.folders.iter().filter_map(|f| Some((f.name.as_str(), f.outcome.as_ref().err()?)))
    }
}

fn apply(
    root: &Root,
    name: &str,
    exists: bool,
    mirror: &Mirror,
    warnings: &mut Vec<Warning>,
) -> Result<Outcome, HostsError> {
    let folder = root.folder(name);
    let base = || match name {
        targets::DEFAULT => Ok(super::compose::Source::default()),
        _ => root.default_source(),
    };
    if !exists {
        *warnings = folder.create(mirror, &base()?, &root.aside())?;
        return Ok(Outcome::Written);
    }
    if !folder.path().is_dir() {
        return Err(HostsError::DanglingFolder { path: folder.path().to_owned() });
    }
    let (wrote, said) = folder.apply(mirror, base)?;
    *warnings = said;
    Ok(if wrote { Outcome::Written } else { Outcome::Unchanged })
}

/// Our entry taken out of folders, but for the CAs. Those that are there for it alone stay until nobody reads them any
/// more: [`let_readers_finish`] comes between the two halves.
struct TakenBack<'a> {
    names: Vec<&'a String>,
    outcomes: BTreeMap<&'a String, Result<Option<Undone>, HostsError>>,
}

impl<'a> TakenBack<'a> {
    fn begin(root: &Root, names: impl IntoIterator<Item = &'a String>) -> Self {
        let names: Vec<&String> = names.into_iter().collect();
        let mut outcomes = BTreeMap::new();
        for &name in &names {
            match root.folder(name).withdraw() {
                Ok(true) => {}
                Ok(false) => drop(outcomes.insert(name, restore(root, name))),
                Err(e) => drop(outcomes.insert(name, Err(e))),
            }
        }
        Self { names, outcomes }
    }

    /// What was done, but for folders in which there was nothing of ours.
    fn finish(self, root: &Root) -> Vec<RestoredFolder> {
        let Self { names, mut outcomes } = self;
        let done = names.into_iter().filter_map(|name| {
            let outcome = outcomes.remove(name).unwrap_or_else(|| restore(root, name));
            Some(RestoredFolder { name: name.clone(), outcome: outcome.transpose()? })
        });
        done.collect()
    }
}

fn restore(root: &Root, name: &str) -> Result<Option<Undone>, HostsError> {
    let folder = root.folder(name);
    if folder.path().is_dir() { folder.restore(&root.aside()) } else { Ok(None) }
}

#[cfg(test)]
thread_local! {
    /// How often this thread let readers finish.
    pub(super) static WAITS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Waits, where one of these folders has a CA of ours, until who has read a file that names it has read it too.
fn let_readers_finish<'a>(root: &Root, names: impl IntoIterator<Item = &'a String>) {
    if names.into_iter().any(|name| root.folder(name).has_ca()) {
        #[cfg(test)]
        WAITS.set(WAITS.get() + 1);
        thread::sleep(READERS);
    }
}

/// The folders whose file is a link to one that is to have our entry: containerd reads ours in them too, and looks for
/// our CA beside the link. So they get an entry of their own.
fn sharers(root: &Root, existing: &BTreeSet<String>, wanted: &BTreeSet<String>) -> BTreeSet<String> {
    let homes: Vec<_> = wanted.iter().filter_map(|name| root.folder(name).path().canonicalize().ok()).collect();
    let shares = |name: &&String| root.folder(name).shares_with().is_some_and(|home| homes.contains(&home));
    existing.difference(wanted).filter(shares).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(listen: &str, reader: Option<Version>) -> Entry {
        Entry { listen: listen.parse().unwrap(), ca_pem: None, reader }
    }

    #[test]
    fn what_containerd_cant_read_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("certs.d");
        let hosts = HostsDir::new(dir.clone(), vec![HostsTarget::Default], None).unwrap();
        let old = Some(Version::new(1, 7, 34));
        for listen in ["[::1]:7439", "[::]:7439", "[fd00::1]:7439"] {
            assert!(matches!(hosts.apply(&entry(listen, old)), Err(HostsError::Bracket)), "{listen}");
            assert!(!dir.exists());
        }
        for (listen, reader) in
            [("127.0.0.1:7439", old), ("0.0.0.0:7439", old), ("[::1]:7439", Some(READS_BRACKETS)), ("[::]:7439", None)]
        {
            assert_eq!(hosts.apply(&entry(listen, reader)).unwrap().failures().count(), 0, "{listen}");
            HostsDir::restore(&dir).unwrap();
            assert!(!dir.exists());
        }
    }

    #[test]
    fn the_url_names_an_address_that_can_be_reached() {
        for (listen, url) in [
            ("127.0.0.1:7439", "http://127.0.0.1:7439"),
            ("0.0.0.0:7439", "http://127.0.0.1:7439"),
            ("[::]:7439", "http://[::1]:7439"),
            ("[fd00::1]:80", "http://[fd00::1]:80"),
        ] {
            let hosts = HostsDir::new("/nowhere".into(), vec![], None).unwrap();
            let mirror = hosts.mirror(&entry(listen, None)).unwrap();
            assert_eq!(mirror.url, url);
            assert!(mirror.table.contains(url));
        }
    }

    #[test]
    fn an_unsound_ca_is_refused() {
        let hosts = HostsDir::new("/nowhere".into(), vec![HostsTarget::Default], None).unwrap();
        for pem in ["", "no pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let entry = Entry { ca_pem: Some(pem.into()), ..entry("127.0.0.1:1", None) };
            assert!(matches!(hosts.apply(&entry), Err(HostsError::UnsoundCa)), "{pem}");
        }
    }
}
