use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::containerd::client::Content;
use crate::image::{Digest, ImageName, MediaType};

/// What containerd has and runs, in all configured namespaces, at one moment. A value: who watches it gets a new one when it
/// changes.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Each target once a namespace.
    pub images: Vec<RuntimeImage>,
    /// The blobs that it holds, whole ones alone. Where it discards layers once they are unpacked, they aren't among them.
    pub contents: Arc<BTreeMap<Digest, Content>>,
    /// The folder below which they lie as `blobs/<algorithm>/<hex>`, as containerd sees it; `None` where it doesn't say.
    pub content_root: Option<PathBuf>,
}

/// An image that containerd has.
#[derive(Debug, Clone)]
pub struct RuntimeImage {
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// The index or manifest that its names mean.
    pub target: Digest,
    /// That one's media type.
    pub media_type: MediaType,
    /// All its names; none for an image that is known by its id alone.
    pub names: Vec<ImageName>,
    /// The runtime never collects it: the sandbox's image, and what kubelet pins.
    pub is_pinned: bool,
    /// The containers that were made from it.
    pub users: Vec<ImageUser>,
}

/// A container that was made from an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageUser {
    /// It has no running task.
    pub is_stopped: bool,
    /// It is a Pod's sandbox.
    pub is_sandbox: bool,
    /// `namespace/pod/container` where the runtime says so, else its id.
    pub name: String,
}
