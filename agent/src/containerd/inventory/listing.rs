//! Asking containerd.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::agenda::Parts;
use crate::containerd::client::{Client, ClientError, Container, Content, ImageRecord};
use crate::image::Digest;

/// What containerd holds.
pub(super) type Contents = Arc<BTreeMap<Digest, Content>>;

/// What was asked for, and `None` for what wasn't.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) images: Option<Vec<ImageRecord>>,
    pub(super) containers: Option<Vec<Container>>,
    pub(super) running: Option<HashSet<(Arc<str>, String)>>,
    pub(super) contents: Option<Contents>,
    pub(super) content_root: Option<PathBuf>,
}

/// How long a whole listing may take: each of its parts has a deadline too, but there may be thousands.
pub(super) const DEADLINE: Duration = Duration::from_secs(120);

/// Asks for these parts. Contents that are as they were are given back as they were.
pub(super) async fn list(client: &Client, parts: Parts, before: &Contents) -> Result<Listing, ClientError> {
    let mut listing = Listing::default();
    // Containers first: one that is made in between is missing, and comes with an event, but its image isn't.
    if parts.containers {
        listing.containers = Some(client.containers().await?);
    }
    if parts.images {
        listing.images = Some(client.image_records().await?);
    }
    if parts.tasks {
        // It takes no more than a few shims that hang, and matters less than all the rest.
        listing.running = client
            .running()
            .await
            .inspect_err(|error| {
                tracing::debug!(%error, "containerd doesn't say what runs: what is known stands");
            })
            .ok();
    }
    if parts.contents {
        listing.contents = Some(contents(client, before).await?);
    }
    if parts.is_all() {
        listing.content_root = client
            .content_root()
            .await
            .inspect_err(|error| {
                tracing::debug!(%error, "containerd's content can't be linked");
            })
            .ok();
    }
    Ok(listing)
}

/// What is held. Most of it was held before: it isn't put together a second time, for there may be a hundred thousand.
async fn contents(client: &Client, before: &Contents) -> Result<Contents, ClientError> {
    let (mut same, mut other) = (Vec::new(), BTreeMap::new());
    client
        .each_content(|content| {
            if before.get(&content.digest) == Some(&content) {
                same.push(content.digest);
            } else {
                // Of what several namespaces hold, one speaks for all.
                other.entry(content.digest).or_insert(content);
            }
        })
        .await?;
    same.sort_unstable();
    same.dedup();
    other.retain(|digest, _| same.binary_search(digest).is_err());
    if other.is_empty() && same.len() == before.len() {
        return Ok(Arc::clone(before));
    }
    let same = same.iter().filter_map(|digest| Some((*digest, before.get(digest)?.clone())));
    Ok(Arc::new(same.chain(other).collect()))
}
