use std::fmt;

use crate::image::{Registry, Repository};

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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}
