use std::collections::{BTreeSet, HashMap};

use crate::cluster::Bucket;
use crate::cluster::directory::{Holding, Shelf};
use crate::image::{Access, Digest};
use crate::peers::messages::MOST_HOLDINGS;
use crate::store::Provenance;

/// What this node holds that may be shared, by bucket.
#[derive(Debug)]
pub(super) struct Holdings {
    /// One for each bucket.
    sets: Vec<Set>,
    count: usize,
}

#[derive(Debug, Default)]
struct Set {
    /// Grows by one with every change that is told; 0 for one of which nothing was ever told.
    generation: u64,
    /// XOR of the holdings' hashes.
    hash: u64,
    held: HashMap<Digest, Holding>,
    /// Come, gone or changed since it was last told.
    news: BTreeSet<Digest>,
}

impl Default for Holdings {
    fn default() -> Self {
        Self { sets: Bucket::all().map(|_| Set::default()).collect(), count: 0 }
    }
}

impl Holdings {
    fn set(&mut self, bucket: Bucket) -> &mut Set {
        // There is one for each bucket.
        &mut self.sets[usize::from(bucket.number())]
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// A blob is held. Of which nothing is known where it came from is for nobody, and not told.
    pub(super) fn keep(&mut self, digest: Digest, provenance: &Provenance) {
        match shared(digest, provenance) {
            Some(holding) => self.put(holding),
            None => self.drop(&digest),
        }
    }

    fn put(&mut self, holding: Holding) {
        let set = self.set(Bucket::of(&holding.digest));
        let known = set.held.get(&holding.digest);
        if known == Some(&holding) {
            return;
        }
        let is_new = known.is_none();
        set.hash ^= known.map_or(0, Holding::hash) ^ holding.hash();
        set.news.insert(holding.digest);
        set.held.insert(holding.digest, holding);
        self.count += usize::from(is_new);
    }

    /// A blob is held no more.
    pub(super) fn drop(&mut self, digest: &Digest) {
        let set = self.set(Bucket::of(digest));
        if let Some(known) = set.held.remove(digest) {
            set.hash ^= known.hash();
            set.news.insert(*digest);
            self.count -= 1;
        }
    }

    /// This is all that is held: what isn't among it has gone.
    pub(super) fn replace(&mut self, all: HashMap<Digest, Provenance>) {
        let gone = self.sets.iter().flat_map(|set| set.held.keys()).filter(|digest| !all.contains_key(*digest));
        for digest in gone.copied().collect::<Vec<_>>() {
            self.drop(&digest);
        }
        for (digest, provenance) in all {
            self.keep(digest, &provenance);
        }
    }

    /// Whether there is something that hasn't been told.
    pub(super) fn has_news(&self) -> bool {
        self.sets.iter().any(|set| !set.news.is_empty())
    }

    /// What has changed since the last call.
    pub(super) fn news(&mut self) -> Vec<Shelf> {
        let sets = Bucket::all().zip(&mut self.sets).filter(|(_, set)| !set.news.is_empty());
        sets.map(|(bucket, set)| set.tell_news(bucket)).collect()
    }

    /// All of a bucket, as it was last told; empty if nothing ever was.
    pub(super) fn whole(&self, bucket: Bucket) -> Shelf {
        self.sets[usize::from(bucket.number())].whole(bucket)
    }

    /// That a bucket stands as it was told.
    pub(super) fn unchanged(&self, bucket: Bucket) -> Shelf {
        let whole = &self.sets[usize::from(bucket.number())];
        Shelf { bucket, generation: whole.generation, hash: whole.hash, all: false, added: vec![], dropped: vec![] }
    }

    /// The buckets of which anything is held.
    pub(super) fn filled(&self) -> impl Iterator<Item = Bucket> {
        Bucket::all().zip(&self.sets).filter(|(_, set)| !set.held.is_empty()).map(|(bucket, _)| bucket)
    }
}

impl Set {
    fn tell_news(&mut self, bucket: Bucket) -> Shelf {
        let is_first = self.generation == 0;
        self.generation += 1;
        let news = std::mem::take(&mut self.news);
        if is_first || news.len() > MOST_HOLDINGS {
            return self.whole(bucket);
        }
        let (mut added, mut dropped) = (Vec::new(), Vec::new());
        for digest in news {
            match self.held.get(&digest) {
                Some(holding) => added.push(holding.clone()),
                None => dropped.push(digest),
            }
        }
        Shelf { bucket, generation: self.generation, hash: self.hash, all: false, added, dropped }
    }

    fn whole(&self, bucket: Bucket) -> Shelf {
        // What is beyond the bound is not known of: then it is fetched once more.
        let added = self.held.values().take(MOST_HOLDINGS).cloned().collect();
        Shelf { bucket, generation: self.generation, hash: self.hash, all: true, added, dropped: Vec::new() }
    }
}

/// What may be said of a blob, by where it came from.
fn shared(digest: Digest, provenance: &Provenance) -> Option<Holding> {
    if provenance.is_public() {
        return Some(Holding { digest, registries: Vec::new() });
    }
    let authorized = provenance.iter().filter(|(_, access)| *access == Access::Authorized);
    let mut registries: Vec<_> = authorized.map(|(registry, _)| registry.clone()).collect();
    registries.sort_unstable();
    (!registries.is_empty()).then_some(Holding { digest, registries })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn provenance(deliveries: &[(&str, Access)]) -> Provenance {
        let all: Vec<(crate::image::Registry, Access)> =
            deliveries.iter().map(|(registry, access)| (registry.parse().unwrap(), *access)).collect();
        postcard::from_bytes(&postcard::to_allocvec(&all).unwrap()).unwrap()
    }

    /// An owner that believes what it is told.
    #[derive(Default)]
    struct Told(HashMap<Bucket, (u64, u64, HashMap<Digest, Holding>)>);

    impl Told {
        /// False where it needs all.
        fn hear(&mut self, shelf: Shelf) -> bool {
            let known = self.0.entry(shelf.bucket).or_default();
            if shelf.all {
                known.2.clear();
            } else if known.0 + 1 != shelf.generation {
                return false;
            }
            for digest in shelf.dropped {
                known.2.remove(&digest);
            }
            known.2.extend(shelf.added.into_iter().map(|holding| (holding.digest, holding)));
            (known.0, known.1) = (shelf.generation, shelf.hash);
            true
        }
    }

    #[test]
    fn what_is_private_is_told_with_its_registries() {
        let digest = Digest::of(b"x");
        assert_eq!(shared(digest, &Provenance::default()), None);
        let private = shared(digest, &provenance(&[("b.test", Access::Authorized), ("a.test", Access::Authorized)]));
        let registries: Vec<String> = private.unwrap().registries.iter().map(ToString::to_string).collect();
        assert_eq!(registries, ["a.test", "b.test"]);
        let public = shared(digest, &provenance(&[("b.test", Access::Authorized), ("a.test", Access::Anonymous)]));
        assert!(public.unwrap().registries.is_empty());
    }

    proptest! {
        #[test]
        fn who_hears_all_news_knows_what_is_held(
            steps in proptest::collection::vec((any::<bool>(), 0u8..40, any::<bool>()), 0..200),
        ) {
            let (mut holdings, mut told) = (Holdings::default(), Told::default());
            let public = provenance(&[("a.test", Access::Anonymous)]);
            let mut held = BTreeSet::new();
            for (comes, n, tells) in steps {
                let digest = Digest::of(&[n]);
                if comes {
                    holdings.keep(digest, &public);
                    held.insert(digest);
                } else {
                    holdings.drop(&digest);
                    held.remove(&digest);
                }
                if tells {
                    for shelf in holdings.news() {
                        prop_assert!(told.hear(shelf));
                    }
                    let known: BTreeSet<Digest> = told.0.values().flat_map(|(_, _, held)| held.keys().copied()).collect();
                    prop_assert_eq!(&known, &held);
                    for (_, hash, held) in told.0.values() {
                        prop_assert_eq!(*hash, held.values().fold(0, |hash, holding| hash ^ holding.hash()));
                    }
                }
            }
            prop_assert_eq!(holdings.len(), held.len());
        }
    }

    #[test]
    fn what_a_list_does_not_have_is_gone() {
        let public = provenance(&[("a.test", Access::Anonymous)]);
        let mut holdings = Holdings::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        holdings.keep(a, &public);
        holdings.news();
        let c = Digest::of(b"c");
        holdings.replace(HashMap::from([(b, public.clone()), (c, public)]));
        let news = holdings.news();
        assert_eq!(news.iter().flat_map(|shelf| &shelf.dropped).collect::<Vec<_>>(), [&a]);
        assert_eq!(holdings.len(), 2);
        assert!(!holdings.has_news());
    }
}
