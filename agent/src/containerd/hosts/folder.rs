//! One folder: what it holds, and how our entry gets in and out of it.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::certs::Certs;
use super::compose::{self, Mirror, Source};
use super::disk;
use super::error::{HostsError, Warning};
use super::marker::{self, Facts, Written};

/// The file that containerd reads.
pub(super) const FILE: &str = "hosts.toml";
/// The file that was there before, or a link if it was one.
pub(super) const KEPT: &str = "hosts.toml.before-larder";
/// The copy of the node's CA that our table names. Not `.crt`: containerd would take that for an upstream's.
pub(super) const CA: &str = "larder-ca.pem";
/// The first line of that copy. What comes before `-----BEGIN` is no part of a PEM file.
const CA_HEAD: &str = "# Written by Larder: the CA of its mirror on this node.\n";

/// A registry's folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// What a folder holds.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) file: Current,
    /// What lies beside it, read through a link if it is one.
    pub(super) kept: Option<Vec<u8>>,
    /// Whether something lies beside it: a link to nothing has a name, and no bytes.
    pub(super) has_kept: bool,
    /// Our copy of the CA.
    pub(super) ca: Option<Vec<u8>>,
}

/// What stands in the place of `hosts.toml`.
#[derive(Debug)]
pub(super) enum Current {
    Missing,
    /// The user's; `None` for a link to nothing.
    Theirs(Option<Vec<u8>>),
    Ours(Written),
}

/// What restoring did to a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// The original is in its place.
    Original,
    /// There was no file before ours, and there is none now.
    NoFile,
    /// There was no folder before ours, and there is none now.
    NoFolder,
    /// Somebody had put another file in the place of ours: it stays; what was ours beside it is gone.
    Theirs,
}

/// Which original there is, and what keeping it takes.
enum Keep {
    /// It lies beside the file, or there is none.
    Done,
    /// The file itself is the original.
    Link,
    /// This text is.
    Text(String),
}

impl Current {
    /// What a reader finds there; `None` for nothing, and for a link to nothing.
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Missing => None,
            Self::Theirs(bytes) => bytes.as_deref(),
            Self::Ours(written) => Some(written.text.as_bytes()),
        }
    }
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Looks at everything that has to do with us.
    pub(super) fn contents(&self) -> Result<Contents, HostsError> {
        let bytes = disk::read(&self.at(FILE))?;
        let file = match bytes.as_deref().and_then(marker::read) {
            // A link is never ours, and may lead to a file of ours in another folder.
            Some(written) if !self.at(FILE).is_symlink() => Current::Ours(written),
            _ if disk::exists(&self.at(FILE)) => Current::Theirs(bytes),
            _ => Current::Missing,
        };
        let has_kept = disk::exists(&self.at(KEPT));
        Ok(Contents { file, kept: disk::read(&self.at(KEPT))?, has_kept, ca: disk::read(&self.at(CA))? })
    }

    /// What the folder says without us.
    pub(super) fn source(&self, prefix: &'static str) -> Result<Source, HostsError> {
        self.source_of(&self.contents()?, prefix)
    }

    fn source_of(&self, contents: &Contents, prefix: &'static str) -> Result<Source, HostsError> {
        let text = match (original(contents).0, &contents.file) {
            (Keep::Text(text), _) => Some(text.into_bytes()),
            (Keep::Link, Current::Theirs(bytes)) => bytes.clone(),
            (Keep::Link, _) => None,
            (Keep::Done, _) => contents.kept.clone(),
        };
        Ok(Source { text, certs: Certs::of(&self.path, prefix)?, prefix })
    }

    /// The same, with the file that says it; `None` where the folder is there for our entry alone, and says what
    /// `_default` does.
    pub(super) fn theirs(&self) -> Result<Option<(Source, PathBuf)>, HostsError> {
        let contents = self.contents()?;
        let source = self.source_of(&contents, "")?;
        if is_ours_alone(&contents, &source.certs) {
            return Ok(None);
        }
        let path = match (original(&contents).0, &source.text) {
            (_, None) => self.path.clone(),
            (Keep::Done, _) => self.at(KEPT),
            (Keep::Link | Keep::Text(_), _) => self.at(FILE),
        };
        Ok(Some((source, path)))
    }

    /// Writes our entry, if it doesn't stand there to the byte. `base` says what `_default` does: a folder that we made
    /// hides it from containerd, and so says the same. Returns whether anything was written. The CA has to be there
    /// before: [`Self::bring_ca`].
    pub(super) fn apply(
        &self,
        mirror: &Mirror,
        base: impl Fn() -> Result<Source, HostsError>,
    ) -> Result<(bool, Vec<Warning>), HostsError> {
        let contents = self.contents()?;
        let (keep, mut warnings) = original(&contents);
        let made = matches!(&contents.file, Current::Ours(written) if written.facts.made);
        let mut source = self.source("")?;
        let kept = contents.has_kept || !matches!(keep, Keep::Done);
        if is_ours_alone(&contents, &source.certs) {
            source = base()?;
        }
        let facts = Facts { mirror: mirror.url.clone(), kept, made };
        let composed = compose::compose(mirror, &source, &facts)
            .map_err(|why| HostsError::Unsound { path: self.at(FILE), why })?;
        warnings.extend(composed.warnings);

        self.clear_temporaries()?;
        match keep {
            Keep::Done => {}
            Keep::Link => disk::link(&self.at(FILE), &self.at(KEPT))?,
            Keep::Text(text) => disk::replace(&self.at(KEPT), text.as_bytes())?,
        }
        let stands = matches!(&contents.file, Current::Ours(written) if written.text == composed.text);
        if !stands {
            disk::swap(&self.at(FILE), composed.text.as_bytes(), contents.file.bytes())?;
        }
        Ok((!stands, warnings))
    }

    /// Makes the folder with our entry in it; it appears whole. `aside` is a name in the same folder for the while.
    pub(super) fn create(&self, mirror: &Mirror, base: &Source, aside: &Path) -> Result<Vec<Warning>, HostsError> {
        let facts = Facts { mirror: mirror.url.clone(), kept: false, made: true };
        let composed =
            compose::compose(mirror, base, &facts).map_err(|why| HostsError::Unsound { path: self.at(FILE), why })?;
        disk::remove_dir(aside)?;
        disk::make_dir(aside)?;
        let new = Self::new(aside.to_owned());
        new.bring_ca(mirror)?;
        disk::replace(&new.at(FILE), composed.text.as_bytes())?;
        disk::rename_new(aside, &self.path)?;
        Ok(composed.warnings)
    }

    /// Puts back what was there before us; `None` if there is nothing of ours. `aside` is as for [`Self::create`].
    /// The CA stays until [`Self::drop_ca`].
    pub(super) fn restore(&self, aside: &Path) -> Result<Option<Undone>, HostsError> {
        let contents = self.contents()?;
        let ours = matches!(contents.file, Current::Ours(_));
        let ca_is_ours = contents.ca.as_deref().is_some_and(is_our_ca);
        if !ours && !contents.has_kept && !ca_is_ours {
            self.clear_temporaries()?;
            return Ok(None);
        }
        let (keep, _) = original(&contents);
        let back = match (&contents.file, keep) {
            (Current::Theirs(_), _) => {
                disk::remove(&self.at(KEPT))?;
                Undone::Theirs
            }
            (_, Keep::Text(text)) => {
                disk::replace(&self.at(FILE), text.as_bytes())?;
                disk::remove(&self.at(KEPT))?;
                Undone::Original
            }
            _ if contents.has_kept => {
                disk::rename(&self.at(KEPT), &self.at(FILE))?;
                Undone::Original
            }
            (Current::Ours(written), _) if written.facts.made && self.retire(aside)? => {
                return Ok(Some(Undone::NoFolder));
            }
            _ => {
                disk::remove(&self.at(FILE))?;
                Undone::NoFile
            }
        };
        self.clear_temporaries()?;
        Ok(Some(back))
    }

    /// Takes our host out of the file of a folder that we made, and leaves the rest to [`Self::restore`]; whether it is
    /// such a folder.
    pub(super) fn withdraw(&self) -> Result<bool, HostsError> {
        if !self.path.is_dir() {
            return Ok(false);
        }
        let contents = self.contents()?;
        match &contents.file {
            Current::Ours(written) if written.facts.made && !contents.has_kept && written.rest_is_ours => {
                let notes = ["Larder is about to remove this.".to_owned()];
                let text = marker::write(&written.facts, &notes, &written.rest);
                disk::swap(&self.at(FILE), text.as_bytes(), contents.file.bytes())?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether there is a copy of the CA in it.
    pub(super) fn has_ca(&self) -> bool {
        disk::read(&self.at(CA)).is_ok_and(|bytes| bytes.is_some_and(|bytes| is_our_ca(&bytes)))
    }

    /// The files of ours in it.
    pub(super) fn traces(&self) -> Result<Vec<PathBuf>, HostsError> {
        if !self.path.is_dir() {
            return Ok(vec![]);
        }
        let contents = self.contents()?;
        let mut traces = Vec::new();
        if matches!(contents.file, Current::Ours(_)) {
            traces.push(self.at(FILE));
        }
        if contents.has_kept {
            traces.push(self.at(KEPT));
        }
        if contents.ca.as_deref().is_some_and(is_our_ca) {
            traces.push(self.at(CA));
        }
        traces.extend(self.temporaries().into_iter().filter(|path| disk::exists(path)));
        Ok(traces)
    }

    /// Removes the folder, at once and whole, if nothing but ours is in it.
    fn retire(&self, aside: &Path) -> Result<bool, HostsError> {
        let names = [self.at(FILE), self.at(CA), disk::temporary(&self.at(FILE)), disk::temporary(&self.at(CA))];
        let only_ours = |folder: &Path| -> Result<bool, HostsError> {
            let failed = |e| HostsError::io("reading", folder, e);
            for entry in std::fs::read_dir(folder).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                if !names.iter().any(|ours| ours.file_name() == Some(&name)) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        if self.path.is_symlink() || !only_ours(&self.path)? {
            return Ok(false);
        }
        disk::remove_dir(aside)?;
        disk::rename_new(&self.path, aside)?;
        if !only_ours(aside)? {
            // Somebody was faster.
            disk::rename_new(aside, &self.path)?;
            return Ok(false);
        }
        disk::remove_dir(aside)?;
        Ok(true)
    }

    /// Puts the CA where a file of ours will name it; whether it wasn't there. A file may be reached through links from
    /// other folders: so this comes for all folders before [`Self::apply`] does for any.
    pub(super) fn bring_ca(&self, mirror: &Mirror) -> Result<bool, HostsError> {
        let Some(pem) = &mirror.ca else { return Ok(false) };
        let text = format!("{CA_HEAD}{pem}");
        match disk::read(&self.at(CA))? {
            Some(now) if now == text.as_bytes() => return Ok(false),
            Some(now) if !is_our_ca(&now) => return Err(HostsError::ForeignCa { path: self.at(CA) }),
            _ => {}
        }
        disk::replace(&self.at(CA), text.as_bytes())?;
        Ok(true)
    }

    /// Removes our CA unless the file still names it, be it through a link to another folder's: every pull would fail.
    /// Whether it did. This comes for all folders after [`Self::apply`] and [`Self::restore`] did.
    pub(super) fn drop_ca(&self) -> Result<bool, HostsError> {
        let ours = disk::read(&self.at(CA))?.is_some_and(|bytes| is_our_ca(&bytes));
        let named = || -> Result<bool, HostsError> {
            let file = disk::read(&self.at(FILE))?.unwrap_or_default();
            Ok(file.windows(CA.len()).any(|part| part == CA.as_bytes()))
        };
        if !ours || named()? { Ok(false) } else { disk::remove(&self.at(CA)) }
    }

    /// The folder to whose file a link leads that stands in the place of ours, or stood there before us.
    pub(super) fn shares_with(&self) -> Option<PathBuf> {
        let link = [FILE, KEPT].map(|name| self.at(name)).into_iter().find(|path| path.is_symlink())?;
        link.canonicalize().ok()?.parent().map(Path::to_owned)
    }

    /// What a crash may leave.
    fn temporaries(&self) -> [PathBuf; 3] {
        [FILE, KEPT, CA].map(|name| disk::temporary(&self.at(name)))
    }

    fn clear_temporaries(&self) -> Result<(), HostsError> {
        self.temporaries().iter().try_for_each(|path| disk::remove(path).map(drop))
    }
}

/// Whether a PEM text has nothing but sound certificates, and one at least; containerd fails every pull otherwise.
pub(super) fn check_pem(pem: &str) -> Result<(), HostsError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(all) if !all.is_empty() && all.iter().all(|der| x509_parser::parse_x509_certificate(der).is_ok()) => Ok(()),
        _ => Err(HostsError::UnsoundCa),
    }
}

fn is_our_ca(bytes: &[u8]) -> bool {
    bytes.starts_with(CA_HEAD.as_bytes())
}

/// Whether we made a folder, and nobody else has said anything in it since.
fn is_ours_alone(contents: &Contents, certs: &Certs) -> bool {
    matches!(&contents.file, Current::Ours(written) if written.facts.made)
        && !contents.has_kept
        && matches!(original(contents).0, Keep::Done)
        && *certs == Certs::default()
}

/// Which original a folder has, from what it holds alone.
fn original(contents: &Contents) -> (Keep, Vec<Warning>) {
    match &contents.file {
        Current::Missing => (Keep::Done, vec![]),
        Current::Theirs(bytes) if contents.has_kept && *bytes != contents.kept => {
            (Keep::Link, vec![Warning::NewOriginal])
        }
        Current::Theirs(_) => (Keep::Link, vec![]),
        Current::Ours(written) if !written.rest_is_ours => {
            let rest = compose::rest_without(&written.rest, &written.facts.mirror);
            if rest.trim().is_empty() && !contents.has_kept {
                return (Keep::Done, vec![]);
            }
            (Keep::Text(rest), vec![Warning::NewOriginal])
        }
        Current::Ours(written) if written.facts.kept && !contents.has_kept => {
            (Keep::Text(written.rest.clone()), vec![Warning::OriginalLost])
        }
        Current::Ours(_) => (Keep::Done, vec![]),
    }
}
