//! Looking around: what containerd says it has, what is remembered, and what the store holds, as a [`Catalog`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use super::candidates::{Candidate, candidates};
use super::listing::{Listing, MAX_LISTING, Platform};
use super::memory::{Memory, Remembered, millis};
use super::walk::{Listings, Sight, Walked, walk};
use super::{Catalog, Held, Known, Why};
use crate::config::Cache;
use crate::containerd::client::{Client, Content};
use crate::containerd::inventory::Inventory;
use crate::image::{Digest, ImageName, MediaType, Registry, Repository};
use crate::peers::WantedCopies;
use crate::store::{self, Holding, Store};

/// Listings that are remembered; beyond, those that were not walked by lately are read again.
const MOST_LISTINGS: usize = 32_768;
/// How often it is looked again for what a walk came to see: each level of an image takes two.
const MOST_ROUNDS: usize = 24;
/// How many blobs the store is asked for at a time.
const MOST_AT_ONCE: usize = 2048;
/// How long one listing may take to be read.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// An image in use was used in this minute, in seconds: not at another moment whenever somebody looks.
const MINUTE: i64 = 60;

/// Who looks around.
#[derive(Debug)]
pub(super) struct Surveyor {
    pub(super) store: Store,
    pub(super) cache: Cache,
    pub(super) memory: Memory,
    /// Has what the store hasn't got yet, or can't have.
    containerd: Option<Arc<Client>>,
    listings: tokio::sync::Mutex<Listings>,
    own: Platform,
}

/// What the store and containerd hold, as far as it was asked for.
struct Seen<'a> {
    holdings: &'a HashMap<Digest, Option<Holding>>,
    contents: Option<&'a BTreeMap<Digest, Content>>,
    asked: RefCell<BTreeSet<Digest>>,
}

impl Sight for Seen<'_> {
    fn held(&self, digest: &Digest) -> Held {
        match self.holdings.get(digest) {
            Some(holding) => holding.map_or(Held::Missing, |holding| Held::from(holding.held)),
            None => {
                self.asked.borrow_mut().insert(*digest);
                Held::Missing
            }
        }
    }

    fn is_in_runtime(&self, digest: &Digest) -> bool {
        self.contents.is_some_and(|contents| contents.contains_key(digest))
    }

    fn size(&self, digest: &Digest) -> Option<u64> {
        let held = self.holdings.get(digest).copied().flatten().map(|holding| holding.size);
        held.or_else(|| Some(self.contents?.get(digest)?.size))
    }
}

impl From<store::Held> for Held {
    fn from(held: store::Held) -> Self {
        match held {
            store::Held::Own => Self::Own,
            store::Held::Shared => Self::Shared,
            store::Held::InPlace => Self::Containerd,
        }
    }
}

impl Surveyor {
    pub(super) async fn new(store: Store, cache: Cache, containerd: Option<Arc<Client>>) -> Self {
        let memory = Memory::load(store.clone()).await;
        Self { store, cache, memory, containerd, listings: tokio::sync::Mutex::default(), own: Platform::own() }
    }

    /// The images that this node knows now. Remembers those that containerd has; forgets those that have expired, and of
    /// which nothing is left.
    pub(super) async fn survey(&self, inventory: Option<&Inventory>, copies: &[WantedCopies]) -> Catalog {
        let now = Timestamp::now();
        let mut found = candidates(inventory, self.memory.all(), copies);
        found.retain(|name, _| !self.is_ignored(name));
        let targets: Vec<_> =
            found.values().map(|candidate| (candidate.target, candidate.media_type.clone())).collect();
        let mut walked = self.walk_all(&targets, inventory).await.into_iter();
        let targets = targets.into_iter().map(|(target, _)| target).collect();
        let mut touched = self.store.last_used(targets).await.into_iter();
        let mut images = Vec::with_capacity(found.len());
        for (name, candidate) in found {
            let walked = walked.next().unwrap_or_default();
            let touched = touched.next().unwrap_or(0);
            if let Some(known) = self.judge(name, candidate, walked, touched, inventory, now).await {
                images.push(Arc::new(known));
            }
        }
        Catalog { images, is_complete: inventory.is_some() }
    }

    async fn judge(
        &self,
        name: ImageName,
        candidate: Candidate,
        walked: Walked,
        touched: u64,
        inventory: Option<&Inventory>,
        now: Timestamp,
    ) -> Option<Known> {
        let in_use = candidate.in_use || is_run_by_stray(&walked, inventory);
        let this_moment = millis(now);
        // What is seen for the first time, and by nobody before, may have been used a moment ago.
        let used = Some(candidate.used.unwrap_or(0).max(touched)).filter(|used| *used > 0).unwrap_or(this_moment);
        let (used, last_used) = match in_use {
            true => (this_moment, at(now.as_second() / MINUTE * MINUTE)),
            false => {
                let exact = i64::try_from(used).ok().and_then(|used| Timestamp::from_millisecond(used).ok());
                (used, exact.unwrap_or(Timestamp::MAX))
            }
        };
        let expires = last_used.saturating_add(self.cache.expire_unused.0).unwrap_or(Timestamp::MAX);
        let prefetched = candidate.prefetched_until.map(|until| at(i64::try_from(until).unwrap_or(i64::MAX)));
        let why = if in_use {
            Why::InUse
        } else if let Some(pattern) = self.cache.keep.iter().find(|pattern| pattern.matches(&name)) {
            Why::Kept(pattern.clone())
        } else if let Some(until) = prefetched.filter(|until| *until > now) {
            Why::Prefetched(until)
        } else if candidate.is_copy {
            Why::Copy
        } else {
            Why::Unused(expires)
        };
        let is_gone = match why {
            Why::InUse | Why::Kept(_) => false,
            _ if self.memory.was_dropped(&name) => true,
            Why::Unused(until) => until <= now && walked.parts.iter().all(|part| part.held == Held::Missing),
            Why::Prefetched(_) | Why::Copy => false,
        };
        if is_gone && !candidate.in_runtime {
            self.memory.forget(&name).await;
            return None;
        }
        if candidate.in_runtime || candidate.used.is_some() {
            // Once it was used, it is no better than any other.
            let prefetched_until = candidate.prefetched_until.filter(|_| !in_use);
            let (target, media_type) = (candidate.target, candidate.media_type);
            let known = Remembered { target, media_type, used, prefetched_until, in_use };
            self.memory.note(&name, known).await;
        }
        let mut used_by = candidate.used_by;
        used_by.sort();
        used_by.dedup();
        let Walked { parts, is_listed, .. } = walked;
        Some(Known { name, target: candidate.target, why, used_by, last_used, parts, is_listed })
    }

    /// The blobs of one image.
    pub(super) async fn walk(&self, target: Digest, media_type: MediaType, inventory: Option<&Inventory>) -> Walked {
        self.walk_all(&[(target, media_type)], inventory).await.pop().unwrap_or_default()
    }

    async fn walk_all(&self, targets: &[(Digest, MediaType)], inventory: Option<&Inventory>) -> Vec<Walked> {
        let mut listings = self.listings.lock().await;
        let contents = inventory.map(|inventory| &*inventory.contents);
        let mut holdings = HashMap::new();
        let mut tried = HashSet::new();
        let mut walked = Vec::new();
        for _ in 0..MOST_ROUNDS {
            let asked;
            (walked, asked) = self.look(targets, &listings, &holdings, contents);
            let unread = walked.iter().flat_map(|walked| &walked.unread).copied();
            let unread: BTreeSet<Digest> = unread.filter(|digest| tried.insert(*digest)).collect();
            if asked.is_empty() && unread.is_empty() {
                break;
            }
            for some in asked.chunks(MOST_AT_ONCE) {
                holdings.extend(some.iter().copied().zip(self.store.holdings(some.to_vec()).await));
            }
            for digest in unread {
                if let Some(listing) = self.read(&digest, contents).await {
                    listings.insert(digest, listing.map(Arc::new));
                }
            }
        }
        walked
    }

    /// Walks by what is known so far; and what the store is to be asked for.
    fn look(
        &self,
        targets: &[(Digest, MediaType)],
        listings: &Listings,
        holdings: &HashMap<Digest, Option<Holding>>,
        contents: Option<&BTreeMap<Digest, Content>>,
    ) -> (Vec<Walked>, Vec<Digest>) {
        let seen = Seen { holdings, contents, asked: RefCell::default() };
        let walk_one =
            |(target, media_type): &(Digest, MediaType)| walk(target, media_type, listings, &seen, &self.own);
        let walked = targets.iter().map(walk_one).collect();
        (walked, seen.asked.into_inner().into_iter().collect())
    }

    /// What manifests that are in the store list.
    pub(super) async fn listings_of(&self, manifests: &[Digest]) -> HashMap<Digest, Arc<Listing>> {
        let mut listings = self.listings.lock().await;
        if listings.len() > MOST_LISTINGS {
            let here: HashSet<&Digest> = manifests.iter().collect();
            listings.retain(|digest, _| here.contains(digest));
        }
        let mut found = HashMap::with_capacity(manifests.len());
        for digest in manifests {
            if !listings.contains_key(digest)
                && let Some(listing) = self.read(digest, None).await
            {
                listings.insert(*digest, listing.map(Arc::new));
            }
            if let Some(Some(listing)) = listings.get(digest) {
                found.insert(*digest, Arc::clone(listing));
            }
        }
        found
    }

    /// Reads a listing; the inner `None` for what is none, the outer for what can't be read at the moment.
    async fn read(&self, digest: &Digest, contents: Option<&BTreeMap<Digest, Content>>) -> Option<Option<Listing>> {
        let content = timeout(READ_WITHIN, self.content(digest, contents)).await.ok()??;
        Some(Listing::parse(&content))
    }

    async fn content(&self, digest: &Digest, contents: Option<&BTreeMap<Digest, Content>>) -> Option<Vec<u8>> {
        let mut read = Vec::new();
        if let Some(blob) = self.store.blob(digest).await {
            if blob.size() > MAX_LISTING {
                return Some(read);
            }
            let mut reader = blob.reader(0..blob.size());
            while let Some(piece) = reader.next().await.ok()? {
                read.extend_from_slice(&piece);
            }
            return Some(read);
        }
        // Not adopted yet, or where we can't reach it: containerd's own word is good enough for a list of what is here.
        let content = contents?.get(digest)?;
        if content.size > MAX_LISTING {
            return Some(read);
        }
        let mut reader = self.containerd.as_ref()?.read(content, 0, content.size).await.ok()?;
        while let Some(piece) = reader.next().await.ok()? {
            read.extend_from_slice(&piece);
        }
        (Digest::of(&read) == *digest).then_some(read)
    }

    /// Whether an image is passed through.
    pub(super) fn is_ignored(&self, name: &ImageName) -> bool {
        self.cache.ignore.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether all of a repository is.
    pub(super) fn ignores(&self, registry: &Registry, repository: &Repository) -> bool {
        self.cache.ignore.iter().any(|pattern| pattern.covers(registry, repository))
    }
}

/// Whether a container of which nobody can say what it was made from runs by this image's config.
fn is_run_by_stray(walked: &Walked, inventory: Option<&Inventory>) -> bool {
    let strays = inventory.map_or(&[][..], |inventory| &inventory.strays);
    strays.iter().filter_map(|stray| stray.config).any(|config| walked.parts.iter().any(|part| part.digest == config))
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}
