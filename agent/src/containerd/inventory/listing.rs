//! Asking containerd.

use std::collections::btree_map::Entry;
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
    let mut gathered = Gathered { before, same: Vec::new(), other: BTreeMap::new() };
    client.each_content(|content| gathered.take(content)).await?;
    Ok(gathered.contents())
}

/// What is held. Most of it was held before: it isn't put together a second time, for there may be a hundred thousand.
struct Gathered<'a> {
    before: &'a Contents,
    same: Vec<Digest>,
    other: BTreeMap<Digest, Content>,
}

impl Gathered<'_> {
    fn take(&mut self, content: Content) {
        if self.before.get(&content.digest) == Some(&content) {
            self.same.push(content.digest);
            return;
        }
        match self.other.entry(content.digest) {
            Entry::Vacant(new) => drop(new.insert(content)),
            Entry::Occupied(mut known) => known.get_mut().merge(content),
        }
    }

    /// What several namespaces hold is one, with all that they say of it.
    fn contents(self) -> Contents {
        let Self { before, mut same, mut other } = self;
        for digest in &same {
            if let (Some(more), Some(known)) = (other.remove(digest), before.get(digest)) {
                let mut all = known.clone();
                all.merge(more);
                other.insert(*digest, all);
            }
        }
        other.retain(|digest, content| {
            let is_same = before.get(digest) == Some(&*content);
            same.extend(is_same.then_some(*digest));
            !is_same
        });
        same.sort_unstable();
        same.dedup();
        same.retain(|digest| !other.contains_key(digest));
        if other.is_empty() && same.len() == before.len() {
            return Arc::clone(before);
        }
        let same = same.iter().filter_map(|digest| Some((*digest, before.get(digest)?.clone())));
        Arc::new(same.chain(other).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(before: &Contents, listed: &[Content]) -> Contents {
        let mut gathered = Gathered { before, same: Vec::new(), other: BTreeMap::new() };
        listed.iter().cloned().for_each(|content| gathered.take(content));
        gathered.contents()
    }

    #[test]
    fn what_two_namespaces_hold_has_the_sources_of_both() {
        let digest = Digest::of(b"x");
        let of = |registry, namespace| Content::from_repository(digest, registry, "a/b").in_namespace(namespace);
        let first = gather(&Contents::default(), &[of("r.test", "one")]);
        let both = gather(&first, &[of("r.test", "one"), of("evil.test", "two")]);
        assert!(first[&digest].only_registry().is_some() && both[&digest].only_registry().is_none());
        let again = gather(&both, &[of("r.test", "one"), of("evil.test", "two")]);
        assert!(Arc::ptr_eq(&both, &again), "nothing has changed");
        let alike = gather(&first, &[of("r.test", "one"), of("r.test", "two")]);
        assert!(Arc::ptr_eq(&first, &alike), "nor does the second one say anything new");
        assert!(gather(&both, &[]).is_empty());
        let one = gather(&both, &[of("evil.test", "two")]);
        assert_eq!(one[&digest].only_registry().map(ToString::to_string).as_deref(), Some("evil.test"));
    }
}
