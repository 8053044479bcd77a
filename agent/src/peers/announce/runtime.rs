//! What containerd holds besides the store.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;

use crate::containerd::client::Content;
use crate::containerd::inventory::Inventory;
use crate::image::{Access, Digest};
use crate::store::Provenance;

/// What containerd holds, as it was last seen; nothing while nobody looks.
pub(super) struct Lent {
    inventory: Option<watch::Receiver<Option<Arc<Inventory>>>>,
    contents: Arc<BTreeMap<Digest, Content>>,
}

impl Lent {
    pub(super) fn new(mut inventory: Option<watch::Receiver<Option<Arc<Inventory>>>>) -> Self {
        if let Some(inventory) = &mut inventory {
            // What is there already is a change from nothing.
            inventory.mark_changed();
        }
        Self { inventory, contents: Arc::default() }
    }

    /// All of it, and where it came from.
    pub(super) fn all(&self) -> impl Iterator<Item = (Digest, Provenance)> {
        self.contents.values().map(|content| (content.digest, provenance_at_containerd(content)))
    }

    /// Where a blob came from, if containerd holds it.
    pub(super) fn provenance(&self, digest: &Digest) -> Option<Provenance> {
        self.contents.get(digest).map(provenance_at_containerd)
    }

    /// Waits until containerd holds something else; which blobs it holds now and didn't, or the other way round, or has from
    /// elsewhere too. For one who waits; cancelling it loses nothing.
    pub(super) async fn changed(&mut self) -> Vec<Digest> {
        loop {
            let Some(inventory) = &mut self.inventory else { return pending().await };
            if inventory.changed().await.is_err() {
                self.inventory = None;
                continue;
            }
            let now = inventory.borrow_and_update().as_ref().map(|now| Arc::clone(&now.contents));
            let Some(now) = now.filter(|now| !Arc::ptr_eq(now, &self.contents)) else { continue };
            let before = std::mem::replace(&mut self.contents, now);
            let is_fresh =
                |content: &&Content| before.get(&content.digest).is_none_or(|known| known.sources != content.sources);
            let fresh = self.contents.values().filter(is_fresh).map(|content| content.digest);
            let gone = before.keys().filter(|digest| !self.contents.contains_key(digest)).copied();
            let changed: Vec<Digest> = fresh.chain(gone).collect();
            if !changed.is_empty() {
                return changed;
            }
        }
    }
}

/// containerd says which repositories a blob came from, and not as whom. So it is protected; and nobody's where it names
/// more than one registry: see [`Content::only_registry`].
#[must_use]
pub fn provenance_at_containerd(content: &Content) -> Provenance {
    content.only_registry().map(|registry| (registry.clone(), Access::Authorized)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(held: &[(&str, &str)]) -> Option<Arc<Inventory>> {
        let content = |(name, repository): &(&str, &str)| {
            let digest = Digest::of(name.as_bytes());
            (digest, Content::from_repository(digest, "r.test", repository))
        };
        let contents = Arc::new(held.iter().map(content).collect());
        Some(Arc::new(Inventory { contents, ..Inventory::default() }))
    }

    fn digests(names: &[&str]) -> Vec<Digest> {
        let mut digests: Vec<Digest> = names.iter().map(|name| Digest::of(name.as_bytes())).collect();
        digests.sort_unstable();
        digests
    }

    async fn changed(lent: &mut Lent) -> Vec<Digest> {
        let mut changed = lent.changed().await;
        changed.sort_unstable();
        changed
    }

    #[tokio::test]
    async fn says_what_changes() {
        let (tell, heard) = watch::channel(None);
        let mut lent = Lent::new(Some(heard));
        tell.send_replace(inventory(&[("one", "a/b"), ("two", "a/b"), ("three", "a/b")]));
        assert_eq!(changed(&mut lent).await, digests(&["one", "two", "three"]));
        assert!(lent.provenance(&Digest::of(b"one")).is_some_and(|known| !known.is_public()));
        // Nothing of it is anything new.
        let same = inventory(&[("one", "a/b"), ("two", "a/b"), ("three", "a/b")]);
        tell.send_replace(same);
        tokio::task::yield_now().await;
        tell.send_replace(inventory(&[("one", "a/b"), ("two", "a/c"), ("four", "a/b")]));
        assert_eq!(changed(&mut lent).await, digests(&["two", "three", "four"]));
        assert_eq!(lent.provenance(&Digest::of(b"three")), None);
        assert_eq!(lent.all().count(), 3);
    }

    #[test]
    fn what_two_registries_are_named_for_is_for_neither() {
        let mut content = Content::from_repository(Digest::of(b"one"), "r.test", "a/b");
        content.sources.push(("r.test".parse().unwrap(), "a/c".parse().unwrap()));
        assert!(provenance_at_containerd(&content).may_be_given_for(&"r.test".parse().unwrap()));
        content.sources.push(("evil.test".parse().unwrap(), "a/b".parse().unwrap()));
        assert_eq!(provenance_at_containerd(&content), Provenance::default());
    }
}
