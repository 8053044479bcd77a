//! What containerd itself holds, for peers: an agent that is new on a node can give what already runs there.

use std::time::Duration;

use super::Inner;
use super::share::given_by;
use crate::containerd::client::{Client, Content, ContentReader};
use crate::image::{Access, Digest, MediaType, Registry};
use crate::peers::{Head, provenance_at_containerd};

/// How long containerd is waited for, while a peer waits for us.
const DEADLINE: Duration = Duration::from_secs(1);

/// A blob of containerd's that a peer may have.
pub(super) struct Lent {
    pub(super) head: Head,
    content: Content,
    client: Client,
}

impl Inner {
    /// The blob, if containerd holds it, and one whose transfer is for `registry` and runs as `access` may have it.
    ///
    /// What is in the store too is given from there, and more widely once its registry was seen to give it to anybody.
    pub(super) async fn lent(&self, digest: &Digest, registry: &Registry, access: Access) -> Option<Lent> {
        let client = self.containerd.as_deref()?;
        let asked = tokio::time::timeout(DEADLINE, client.content(digest)).await.ok()?;
        let content = asked.inspect_err(|error| tracing::debug!(%digest, %error, "containerd doesn't say")).ok()??;
        let (registry, access) = given_by(&provenance_at_containerd(&content), registry, access)?;
        let media_type = MediaType::octet_stream();
        let head = Head { size: content.size, media_type, registry, access, whole: true, sources: Vec::new() };
        Some(Lent { head, content, client: client.clone() })
    }
}

impl Lent {
    /// Reads a part of it; `None` where containerd gives it no more.
    pub(super) async fn read(&self, from: u64, end: u64) -> Option<ContentReader> {
        let read = tokio::time::timeout(DEADLINE, self.client.read(&self.content, from, end)).await.ok()?;
        read.inspect_err(|error| tracing::debug!(digest = %self.content.digest, %error, "containerd gives nothing"))
            .ok()
    }
}
