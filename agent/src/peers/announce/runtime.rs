//! What containerd itself holds.

use crate::containerd::client::{Client, Content};
use crate::image::{Access, Digest};
use crate::store::{Provenance, Store};

/// What containerd holds, and where it came from; nothing while it can't be asked.
pub(super) async fn lent(client: &Client, store: &Store) -> Vec<(Digest, Provenance)> {
    let contents = match client.contents().await {
        Ok(contents) => contents,
        Err(error) => {
            tracing::debug!(%error, "containerd doesn't say what it holds");
            return Vec::new();
        }
    };
    let mut lent = Vec::with_capacity(contents.len());
    for content in contents {
        lent.push((content.digest, provenance(&content, store).await));
    }
    lent
}

/// containerd knows the repositories that a blob came from, and not as whom: it counts as protected, unless one of them is
/// known to open to anybody.
async fn provenance(content: &Content, store: &Store) -> Provenance {
    let mut deliveries = Vec::with_capacity(content.sources.len());
    for (registry, repository) in &content.sources {
        let known = store.openness(registry, repository).await;
        deliveries.push((registry.clone(), known.map_or(Access::Authorized, |(access, _)| access)));
    }
    deliveries.into_iter().collect()
}
