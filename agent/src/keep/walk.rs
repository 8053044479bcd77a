//! From an image's target to its blobs: what a machine needs of it, by the listings that are here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::listing::{Child, Descriptor, Listing, Platform, best_for};
use super::{Held, Part};
use crate::image::{Digest, MediaType};

/// How deep indexes may lie in each other.
const MAX_DEPTH: usize = 4;
/// The most blobs of an image.
const MAX_PARTS: usize = 16_384;

/// What is here, to walk by.
pub(super) trait Sight {
    /// Whether, and how, a blob is here.
    fn held(&self, digest: &Digest) -> Held;

    /// Whether containerd has a blob, adopted or not.
    fn is_in_runtime(&self, digest: &Digest) -> bool;

    /// How long a blob that is here is, in bytes.
    fn size(&self, digest: &Digest) -> Option<u64>;
}

/// Listings that were read; `None` for what was read and is none.
pub(super) type Listings = HashMap<Digest, Option<Arc<Listing>>>;

/// The blobs of an image, as far as the listings that are here say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Walked {
    /// Each once, listings first.
    pub(super) parts: Vec<Part>,
    /// Whether they are all.
    pub(super) is_listed: bool,
    /// Listings that are here and have not been read: with them, there is more to see.
    pub(super) unread: Vec<Digest>,
}

/// Walks from `target` down, on a machine of platform `own`.
pub(super) fn walk(
    target: &Digest,
    media_type: &MediaType,
    listings: &Listings,
    sight: &impl Sight,
    own: &Platform,
) -> Walked {
    let mut walk = Walk { listings, sight, own, seen: HashSet::new(), found: Walked::default() };
    let size = sight.size(target).unwrap_or(0);
    let root = Descriptor { digest: *target, size, media_type: media_type.clone() };
    walk.found.is_listed = true;
    walk.enter(&root, 0);
    walk.found
}

struct Walk<'a, S> {
    listings: &'a Listings,
    sight: &'a S,
    own: &'a Platform,
    seen: HashSet<Digest>,
    found: Walked,
}

impl<S: Sight> Walk<'_, S> {
    /// A manifest or an index.
    fn enter(&mut self, blob: &Descriptor, depth: usize) {
        if depth > MAX_DEPTH {
            self.found.is_listed = false;
            return;
        }
        self.take(blob);
        match self.listings.get(&blob.digest) {
            Some(Some(listing)) => match &**listing {
                Listing::Manifest(blobs) => blobs.iter().for_each(|blob| self.take(blob)),
                Listing::Index(children) => {
                    let in_use = self.in_use(children);
                    self.found.is_listed &= !in_use.is_empty() || children.is_empty();
                    for child in in_use {
                        self.enter(&child.blob, depth + 1);
                    }
                }
            },
            Some(None) => self.found.is_listed = false,
            None => {
                self.found.is_listed = false;
                if self.is_here(&blob.digest) {
                    self.found.unread.push(blob.digest);
                }
            }
        }
    }

    fn take(&mut self, blob: &Descriptor) {
        if !self.seen.insert(blob.digest) {
            return;
        }
        if self.found.parts.len() >= MAX_PARTS {
            self.found.is_listed = false;
            return;
        }
        let Descriptor { digest, size, media_type } = blob.clone();
        self.found.parts.push(Part { digest, size, media_type, held: self.sight.held(&digest) });
    }

    /// The entries of an index that are used here: those that the runtime has; else the one for this machine; else those
    /// that are here at all.
    fn in_use<'c>(&mut self, children: &'c [Child]) -> Vec<&'c Child> {
        let in_runtime: Vec<&Child> = children.iter().filter(|child| self.is_used_by_runtime(&child.blob)).collect();
        if !in_runtime.is_empty() {
            return in_runtime;
        }
        match best_for(children, self.own) {
            Some(own) => vec![own],
            None => children.iter().filter(|child| self.is_here(&child.blob.digest)).collect(),
        }
    }

    /// Whether the runtime has the manifest, or what it lists.
    fn is_used_by_runtime(&mut self, manifest: &Descriptor) -> bool {
        if self.sight.is_in_runtime(&manifest.digest) {
            return true;
        }
        match self.listings.get(&manifest.digest) {
            Some(Some(listing)) => listing.digests().any(|blob| self.sight.is_in_runtime(&blob.digest)),
            Some(None) => false,
            None => {
                if self.is_here(&manifest.digest) {
                    self.found.unread.push(manifest.digest);
                }
                false
            }
        }
    }

    fn is_here(&self, digest: &Digest) -> bool {
        self.sight.held(digest) != Held::Missing || self.sight.is_in_runtime(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Here {
        store: HashSet<Digest>,
        runtime: HashSet<Digest>,
    }

    impl Sight for Here {
        fn held(&self, digest: &Digest) -> Held {
            if self.store.contains(digest) { Held::Own } else { Held::Missing }
        }

        fn is_in_runtime(&self, digest: &Digest) -> bool {
            self.runtime.contains(digest)
        }

        fn size(&self, _: &Digest) -> Option<u64> {
            Some(9)
        }
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn blob(name: &str) -> Descriptor {
        Descriptor { digest: digest(name), size: 7, media_type: MediaType::octet_stream() }
    }

    fn child(name: &str, architecture: &str) -> Child {
        let platform = Platform { architecture: architecture.to_owned(), ..Platform::own() };
        Child { blob: blob(name), platform: Some(platform) }
    }

    /// `index` of two platforms, each a manifest with a config, a layer of its own, and one that both have.
    fn listings() -> Listings {
        let manifest = |name: &str| {
            let blobs = [format!("{name} config"), format!("{name} layer"), "base".to_owned()];
            Some(Arc::new(Listing::Manifest(blobs.iter().map(|name| blob(name)).collect())))
        };
        let index = Listing::Index(vec![child("one", "one"), child("two", "two")]);
        [(digest("index"), Some(Arc::new(index))), (digest("one"), manifest("one")), (digest("two"), manifest("two"))]
            .into()
    }

    fn walked(here: &Here, listings: &Listings, own: &str) -> (Vec<String>, bool, usize) {
        let own = Platform { architecture: own.to_owned(), ..Platform::own() };
        let walked = walk(&digest("index"), &MediaType::octet_stream(), listings, here, &own);
        let all = ["index", "one", "one config", "one layer", "base", "two", "two config", "two layer"];
        let name = |part: &Part| all.iter().find(|name| digest(name) == part.digest).unwrap().to_string();
        (walked.parts.iter().map(name).collect(), walked.is_listed, walked.unread.len())
    }

    #[test]
    fn the_platforms_in_use_are_walked() {
        let mut here = Here::default();
        let one = ["index", "one", "one config", "one layer", "base"];
        assert_eq!(walked(&here, &listings(), "one"), (one.map(str::to_owned).into(), true, 0));
        here.runtime.insert(digest("two layer"));
        let two = ["index", "two", "two config", "two layer", "base"];
        assert_eq!(walked(&here, &listings(), "one"), (two.map(str::to_owned).into(), true, 0), "it runs another's");
        here.runtime.insert(digest("one"));
        assert_eq!(walked(&here, &listings(), "one").0.len(), 8, "both, and what both have once");
        here.runtime.clear();
        here.store.insert(digest("two"));
        assert_eq!(walked(&here, &listings(), "one").0, one, "this machine's is the one that is meant");
        assert_eq!(walked(&here, &listings(), "three").0, two, "what is here is better than nothing");
        here.store.clear();
        assert_eq!(walked(&here, &listings(), "three"), (vec!["index".to_owned()], false, 0));
    }

    #[test]
    fn what_is_here_and_unread_is_said() {
        let mut here = Here::default();
        let mut known = listings();
        known.remove(&digest("one"));
        assert_eq!(walked(&here, &known, "one"), (vec!["index".to_owned(), "one".to_owned()], false, 0));
        here.runtime.insert(digest("one"));
        assert_eq!(walked(&here, &known, "one").2, 1);
        known.insert(digest("one"), None);
        assert_eq!(walked(&here, &known, "one"), (vec!["index".to_owned(), "one".to_owned()], false, 0));
    }

    #[test]
    fn indexes_in_a_circle_end() {
        let circle = Listing::Index(vec![Child { blob: blob("index"), platform: None }]);
        let known = [(digest("index"), Some(Arc::new(circle)))].into();
        assert_eq!(walked(&Here::default(), &known, "one"), (vec!["index".to_owned()], false, 0));
    }
}
