use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::containerd::client::Content;
use crate::image::{Digest, ImageName, MediaType};

/// What containerd has and runs, in all configured namespaces, at one moment. A value: who watches it gets a new one when it
/// changes.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Each target once a namespace, ordered by both. Among them are those that containerd has no record of any more while
    /// containers made from them are still there, as far as they were known before.
    pub images: Vec<RuntimeImage>,
    /// The containers of which nobody can say what image they were made from: its record had gone before it was first looked
    /// for.
    pub strays: Vec<Stray>,
    /// The blobs that it holds, whole ones alone. Where it discards layers once they are unpacked, they aren't among them.
    pub contents: Arc<BTreeMap<Digest, Content>>,
    /// The folder below which they lie as `blobs/<algorithm>/<hex>`, as containerd sees it; `None` where it doesn't say.
    pub content_root: Option<PathBuf>,
}

impl Inventory {
    /// Whether nothing has changed. Contents are the same while they are the very same map.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.contents, &other.contents)
            && self.content_root == other.content_root
            && self.images == other.images
            && self.strays == other.strays
    }
}

/// An image that containerd has, or that containers were made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeImage {
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// The index or manifest that its names mean.
    pub target: Digest,
    /// That one's media type.
    pub media_type: MediaType,
    /// All its names, those with a tag first; none for an image that is known by its id alone. Of one that has lost them, those that no
    /// other image has taken over since.
    pub names: Vec<ImageName>,
    /// The runtime never collects it: what it pins, and the image of its sandboxes.
    pub is_pinned: bool,
    /// The containers that were made from it, running ones first.
    pub users: Vec<ImageUser>,
}

/// A container that was made from an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageUser {
    /// It has no running task.
    pub is_stopped: bool,
    /// It is a Pod's sandbox.
    pub is_sandbox: bool,
    /// `namespace/pod/container`, or `namespace/pod` of a sandbox, where the runtime says so, else its id.
    pub name: String,
}

/// A container whose image isn't known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// The image's name when the container was made. It may mean another image by now.
    pub image: Option<ImageName>,
    /// The digest of the image's config.
    pub config: Option<Digest>,
    /// The container.
    pub user: ImageUser,
}
