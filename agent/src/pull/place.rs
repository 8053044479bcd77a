use std::fmt;

use crate::image::{Digest, ImageName, Registry, Repository};
use crate::upstream::Grant;

/// Where a blob is asked for: a repository at a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The registry as image names call it.
    pub registry: Registry,
    /// The repository at that registry.
    pub repository: Repository,
}

/// By which of a registry's two endpoints a blob is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `/manifests/`: manifests and indexes.
    Manifest,
    /// `/blobs/`: configs and layers.
    Blob,
}

/// One blob, where it is asked for, and as whom.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// A repository at a registry.
    pub place: Place,
    /// What the caller has shown.
    pub grant: Grant,
    /// The blob.
    pub digest: Digest,
    /// By which endpoint it is had.
    pub kind: Kind,
}

impl From<&ImageName> for Place {
    fn from(name: &ImageName) -> Self {
        Self { registry: name.registry.clone(), repository: name.repository.clone() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}
