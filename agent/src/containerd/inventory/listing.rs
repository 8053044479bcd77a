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

async fn contents(client: &Client, before: &Contents) -> Result<Contents, ClientError> {
    let (mut contents, mut same) = (BTreeMap::new(), 0);
    client
        .each_content(|content| {
            // Of what several namespaces hold, the first speaks for all.
            contents.entry(content.digest).or_insert_with(|| {
                same += usize::from(before.get(&content.digest) == Some(&content));
                content
            });
        })
        .await?;
    let is_same = same == contents.len() && same == before.len();
    Ok(if is_same { Arc::clone(before) } else { Arc::new(contents) })
}
