//! What containerd itself holds.

use crate::cluster::directory::Holding;
use crate::containerd::client::{Client, Content};
use crate::image::Access;
use crate::store::Store;

/// What may be said of what containerd holds; nothing while it can't be asked.
pub(super) async fn lent(client: &Client, store: &Store) -> Vec<Holding> {
    let contents = match client.contents().await {
        Ok(contents) => contents,
        Err(error) => {
            tracing::debug!(%error, "containerd doesn't say what it holds");
            return Vec::new();
        }
    };
    let mut holdings = Vec::with_capacity(contents.len());
    for content in contents {
        holdings.extend(shared(&content, store).await);
    }
    holdings
}

/// containerd knows the repositories that a blob came from, and not as whom: it is for their registries alone, unless one
/// of them is known to open to anybody.
async fn shared(content: &Content, store: &Store) -> Option<Holding> {
    for (registry, repository) in &content.sources {
        if store.openness(registry, repository).await.is_some_and(|(access, _)| access == Access::Anonymous) {
            return Some(Holding { digest: content.digest, registries: Vec::new() });
        }
    }
    let mut registries: Vec<_> = content.sources.iter().map(|(registry, _)| registry.clone()).collect();
    registries.sort_unstable();
    registries.dedup();
    (!registries.is_empty()).then_some(Holding { digest: content.digest, registries })
}
