//! What containerd itself holds.

use crate::containerd::client::{Client, Content};
use crate::image::{Access, Digest};
use crate::store::Provenance;

/// What containerd holds, and where it came from; nothing while it can't be asked.
pub(super) async fn lent(client: &Client) -> Vec<(Digest, Provenance)> {
    let contents = match client.contents().await {
        Ok(contents) => contents,
        Err(error) => {
            tracing::debug!(%error, "containerd doesn't say what it holds");
            return Vec::new();
        }
    };
    contents.iter().map(|content| (content.digest, provenance_at_containerd(content))).collect()
}

/// containerd says which repositories a blob came from, and neither as whom, nor whether it came from them at all: it calls
/// each a source whose manifest names what it has already. So it is protected.
#[must_use]
pub fn provenance_at_containerd(content: &Content) -> Provenance {
    content.sources.iter().map(|(registry, _)| (registry.clone(), Access::Authorized)).collect()
}
