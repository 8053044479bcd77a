use std::sync::Arc;

use jiff::Timestamp;

use crate::image::{Digest, ImageName, ImagePattern, MediaType};

/// The images that this node knows, and what it has of each. A value: who watches it gets a new one when it changes.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Ordered by name.
    pub images: Vec<Arc<Known>>,
    /// Whether containerd has said what it holds; until then, what is here is as it was remembered.
    pub is_complete: bool,
}

/// One image: what a name meant when it was last pulled here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name in full. Images that were only ever used by digest have the digest's.
    pub name: ImageName,
    /// The index or manifest that it means here.
    pub target: Digest,
    /// Why it is kept.
    pub why: Why,
    /// Who uses it, for people: Pods and containers, running ones first.
    pub used_by: Vec<User>,
    /// When something on this node last used it.
    pub last_used: Timestamp,
    /// Its manifests, configs and layers for the platforms in use; each once.
    pub parts: Vec<Part>,
    /// Whether `parts` is all of them: a manifest may be missing, and then nobody knows what it lists.
    pub is_listed: bool,
}

/// Who uses an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    /// Stopped containers sort behind.
    pub is_stopped: bool,
    /// `namespace/pod/container` where the runtime says so, else the container's id.
    pub name: String,
}

/// Why an image is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Containers on this node use it, or the runtime pins it.
    InUse,
    /// A pattern under `cache.keep`.
    Kept(ImagePattern),
    /// Somebody has asked for it with `larder prefetch`, and nothing has used it since; until then.
    Prefetched(Timestamp),
    /// Another node runs it, and `cache.copies` wants more nodes to have it.
    Copy,
    /// It was in use until lately. It expires then.
    Unused(Timestamp),
}

/// One blob of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The blob.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// As the manifest or index names it.
    pub media_type: MediaType,
    /// Whether it is here.
    pub held: Held,
}

/// Whether, and how, a blob is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// It isn't.
    Missing,
    /// In the store, and nowhere else: dropping it frees its bytes.
    Own,
    /// In the store, on the same bytes of the disk as containerd's.
    Shared,
    /// In containerd's content store alone: served from there.
    Containerd,
}

impl Known {
    /// Whether every blob of it is here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_listed && self.parts.iter().all(|part| part.held != Held::Missing)
    }

    /// Bytes of all its blobs, as far as they are known.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.parts.iter().map(|part| part.size).sum()
    }

    /// Bytes of it that aren't here.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.parts.iter().filter(|part| part.held == Held::Missing).map(|part| part.size).sum()
    }

    /// When it goes, if nothing uses it until then. `None`: not by itself.
    #[must_use]
    pub const fn expires(&self) -> Option<Timestamp> {
        match &self.why {
            Why::InUse | Why::Kept(_) | Why::Copy => None,
            Why::Prefetched(until) | Why::Unused(until) => Some(*until),
        }
    }
}
