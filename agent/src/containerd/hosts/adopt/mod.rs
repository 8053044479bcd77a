//! The mirrors in the user's own files, as upstreams of ours: what worked before Larder has to work through it.
//!
//! Read are the files that the user wrote, never our entry: `folder` tells the two apart, here as for everything else.
//! Of each folder that containerd reads for a registry come the hosts that may be pulled from, in the file's order, and
//! then its `server`. A registry's own address stands among them only where the file gives it a place of its own, or a
//! setting: a CA, a client certificate, a header. What can't be taken over is left out and said; nothing fails for it,
//! and containerd itself still asks those hosts after us.
//!
//! `host` makes an upstream of one host, `certificates` looks at the files that it names, `adoption` tells what changes.

mod adoption;
mod certificates;
mod host;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use self::adoption::Adoption;
use self::certificates::Certificates;
use self::host::Taking;
use super::compose::{self, Source};
use super::error::{HostsError, NotAdopted};
use super::folder::Folder;
use super::reading::{Fields, Reading};
use super::{root, targets};
use crate::config::{HostsTarget, UpstreamConfig};
use crate::image::Digest;

/// The user's hosts, folder by folder.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adopted {
    /// The folders that say something, by their targets.
    pub folders: Vec<AdoptedFolder>,
}

/// What one folder says.
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptedFolder {
    /// Whose requests containerd reads it for.
    pub target: HostsTarget,
    /// The user's file; the folder itself where certificate files alone speak, or nothing does.
    pub file: PathBuf,
    /// In the order in which containerd asks them. Empty: the registry's own address alone, whatever `_default` says.
    pub upstreams: Vec<UpstreamConfig>,
    /// What stays with containerd.
    pub left_out: Vec<LeftOut>,
    /// What the certificate files hold: one that is renewed under its name is a change.
    files: Vec<(PathBuf, Digest)>,
}

/// A host that is not taken over, or not with all that the file says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The host as the file names it, without credentials; `None` where the whole file is meant.
    pub host: Option<String>,
    /// Why.
    pub why: NotAdopted,
}

impl Adopted {
    /// The upstreams by target, as configuration.
    #[must_use]
    pub fn upstreams(&self) -> Vec<(HostsTarget, Vec<UpstreamConfig>)> {
        self.folders.iter().map(|folder| (folder.target.clone(), folder.upstreams.clone())).collect()
    }
}

/// Looks at everything below `dir`; nothing for a missing folder.
pub(super) fn adopted(dir: &Path, listen: SocketAddr) -> Result<Adopted, HostsError> {
    if !dir.exists() {
        return Ok(Adopted::default());
    }
    let existing = root::names(dir)?;
    let mut certificates = Certificates::default();
    let mut folders: Vec<_> =
        existing.iter().filter_map(|name| folder(dir, name, &existing, listen, &mut certificates)).collect();
    folders.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(Adopted { folders })
}

/// `None` for a folder that says nothing to us.
fn folder(
    dir: &Path,
    name: &str,
    existing: &BTreeSet<String>,
    listen: SocketAddr,
    certificates: &mut Certificates,
) -> Option<AdoptedFolder> {
    let target = targets::target(name, existing)?;
    let path = dir.join(name);
    if !path.is_dir() {
        return None;
    }
    let mut said = AdoptedFolder { target, file: path.clone(), upstreams: vec![], left_out: vec![], files: vec![] };
    match Folder::new(path.clone()).theirs() {
        Ok(None) => return None,
        Ok(Some((source, file))) => {
            said.file = file;
            let mut taking = Taking::new(&path, listen, certificates);
            said.take(&source, &mut taking);
            said.files = taking.into_files();
        }
        Err(e) => said.leave_out(None, NotAdopted::Unreadable(e.with_source())),
    }
    // A registry's folder counts even when it says nothing: containerd doesn't look into `_default` then.
    let is_silent = said.upstreams.is_empty() && said.left_out.is_empty();
    (said.target != HostsTarget::Default || !is_silent).then_some(said)
}

impl AdoptedFolder {
    fn take(&mut self, source: &Source, taking: &mut Taking<'_>) {
        let read = || Reading::of(&compose::own_text(source.text.as_deref().unwrap_or_default())?);
        // A file that containerd can't read counts as one that says nothing.
        let reading = match read() {
            Ok(reading) => Some(reading).filter(|reading| !reading.is_blank()),
            Err(why) => {
                self.leave_out(None, NotAdopted::Malformed(why));
                None
            }
        };
        for host in reading.iter().flat_map(|reading| &reading.hosts) {
            self.add(&host.url, host.fields(), taking);
        }
        let root = reading.as_ref().map_or_else(|| Ok(source.certs.fields()), Reading::root_fields);
        match (reading.as_ref().and_then(Reading::server), &self.target) {
            (Some(server), _) => self.add(server, root, taking),
            (None, HostsTarget::Registry(registry)) => {
                let Some((url, is_known)) = host::own_address(registry) else { return };
                // Without a setting it is what comes last anyway.
                if !is_known || root.as_ref().is_ok_and(Fields::has_settings) {
                    self.add(&url, root, taking);
                }
            }
            (None, HostsTarget::Default) => {
                if root.is_ok_and(|root| root.has_settings()) {
                    self.leave_out(None, NotAdopted::EveryOwnAddress);
                }
            }
        }
    }

    fn add(&mut self, url: &str, fields: Result<Fields, String>, taking: &mut Taking<'_>) {
        let taken =
            fields.map_err(NotAdopted::Malformed).and_then(|fields| taking.upstream(url, &fields, &self.target));
        match taken {
            Ok(taken) => {
                taken.without.into_iter().for_each(|why| self.leave_out(Some(url), why));
                if !self.upstreams.contains(&taken.upstream) {
                    self.upstreams.push(taken.upstream);
                }
            }
            // An entry of ours that somebody copied: nothing is lost with it.
            Err(NotAdopted::Ourselves) => {}
            Err(why) => self.leave_out(Some(url), why),
        }
    }

    fn leave_out(&mut self, host: Option<&str>, why: NotAdopted) {
        // A password may stand before the host; it is for nobody's eyes.
        let host = host.map(|host| host.rsplit_once('@').map_or(host, |(_, rest)| rest).to_owned());
        self.left_out.push(LeftOut { host, why });
    }
}
