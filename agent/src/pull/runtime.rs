//! What containerd itself holds, for peers: an agent that is new on a node can give what already runs there.

use std::time::Duration;

use tokio::time::timeout;

use super::Inner;
use super::share::{NotShared, given_by};
use crate::containerd::client::{Client, ClientError, Content, ContentReader};
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
    ///
    /// # Errors
    /// When it isn't there for such a peer, or containerd, which may be busy with unpacking, doesn't say in time.
    pub(super) async fn lent(&self, digest: &Digest, registry: &Registry, access: Access) -> Result<Lent, NotShared> {
        let client = self.containerd.as_deref().ok_or(NotShared::Absent)?;
        let content = in_time(digest, client.content(digest)).await?.ok_or(NotShared::Absent)?;
        let given = given_by(&provenance_at_containerd(&content), registry, access);
        let (registry, access) = given.ok_or(NotShared::Absent)?;
        let media_type = MediaType::octet_stream();
        let head = Head { size: content.size, media_type, registry, access, whole: true, sources: Vec::new() };
        Ok(Lent { head, content, client: client.clone() })
    }
}

impl Lent {
    /// Reads a part of it.
    ///
    /// # Errors
    /// When containerd gives it no more, or not in time.
    pub(super) async fn read(&self, from: u64, end: u64) -> Result<ContentReader, NotShared> {
        in_time(&self.content.digest, self.client.read(&self.content, from, end)).await
    }
}

/// What containerd says within the deadline. One that says nothing may have it all the same; from one that isn't there,
/// nothing is to be had for now.
async fn in_time<T>(digest: &Digest, call: impl Future<Output = Result<T, ClientError>>) -> Result<T, NotShared> {
    match timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            tracing::debug!(%digest, %error, "containerd gives nothing");
            let is_absent = error.is_not_found() || error.is_unreachable();
            Err(if is_absent { NotShared::Absent } else { NotShared::Unanswered })
        }
        Err(_) => {
            tracing::debug!(%digest, within = ?DEADLINE, "containerd doesn't answer");
            Err(NotShared::Unanswered)
        }
    }
}
