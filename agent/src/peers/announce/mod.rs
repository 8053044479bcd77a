//! Tells owners what this node holds.
//!
//! What comes and goes in the store is told within 100 ms, together with what else does meanwhile. Every five minutes
//! each owner hears that all stands as it stood, in a few bytes a bucket; who has lost what it was told asks for all of
//! it. When owners change, the new ones are told within a second. What containerd holds besides is told as its inventory
//! says it.

mod holdings;
mod runtime;

pub use runtime::provenance_at_containerd;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use self::holdings::Holdings;
use self::runtime::Lent;
use super::Inner;
use super::calls::CallError;
use super::messages::MOST_HOLDINGS;
use super::owner::until;
use crate::cluster::directory::{Announced, Shelf};
use crate::cluster::{Bucket, Ring};
use crate::containerd::inventory::Inventory;
use crate::image::{Digest, NodeId};
use crate::store::{Event, Events, Store};

/// What comes within it is told together.
const BATCH: Duration = Duration::from_millis(100);
/// At most so long after a change of owners, or a call that failed, all of a bucket is told.
const JITTER: Duration = Duration::from_secs(1);
/// How often it is told that nothing has changed: a third of the time for which it is believed. Give or take a fifth.
const RENEW: Duration = Duration::from_secs(300);
/// After a call that failed. The ring may say by then that nobody is there.
const AGAIN: Duration = Duration::from_secs(5);
/// Owners that are told at a time.
const AT_ONCE: usize = 8;
/// When what is here is listed again, after the disk didn't answer.
const LIST_AGAIN: Duration = Duration::from_secs(30);
/// How many blobs are listed at a time.
const LISTED: usize = 256;
/// And of how many it is asked at a time whether the store holds them.
const ASKED: usize = 2048;

/// Tells owners what `store` and containerd hold, until the node ends.
pub(super) async fn announce(
    inner: Arc<Inner>,
    store: Store,
    inventory: Option<watch::Receiver<Option<Arc<Inventory>>>>,
) {
    let mut events = store.events();
    let mut announcer = Announcer {
        ring: inner.ring.borrow().clone(),
        inner: Arc::clone(&inner),
        lent: Lent::new(inventory),
        holdings: Holdings::default(),
        todo: BTreeMap::new(),
        calls: FuturesUnordered::new(),
        busy: BTreeSet::new(),
        list_at: None,
        flush_at: None,
        spread_at: None,
        spread: BTreeSet::new(),
        renew_at: Instant::now() + RENEW,
    };
    let run = async {
        announcer.list(&store).await;
        announcer.run(&store, &mut events).await;
    };
    inner.stop.run_until_cancelled(run).await;
}

struct Announcer {
    inner: Arc<Inner>,
    lent: Lent,
    ring: Arc<Ring>,
    holdings: Holdings,
    /// What each owner is still to be told.
    todo: BTreeMap<NodeId, Todo>,
    calls: FuturesUnordered<BoxFuture<'static, Called>>,
    /// Owners that are being told something: what follows waits, so that nothing overtakes.
    busy: BTreeSet<NodeId>,
    /// When what is here is listed again: the disk didn't answer.
    list_at: Option<Instant>,
    /// When news are told.
    flush_at: Option<Instant>,
    /// When these buckets are told as a whole to their owners.
    spread_at: Option<Instant>,
    spread: BTreeSet<(NodeId, Bucket)>,
    renew_at: Instant,
}

#[derive(Default)]
struct Todo {
    whole: BTreeSet<Bucket>,
    news: Vec<Shelf>,
    unchanged: BTreeSet<Bucket>,
}

struct Called {
    owner: NodeId,
    buckets: Vec<Bucket>,
    outcome: Result<Announced, CallError>,
}

impl Announcer {
    async fn list(&mut self, store: &Store) {
        let (mut all, mut after) = (HashMap::new(), None);
        loop {
            let Ok(batch) = store.list(after.as_ref(), LISTED).await else {
                // A part of it would withdraw the rest.
                self.list_at = Some(Instant::now() + LIST_AGAIN);
                return;
            };
            let Some(last) = batch.last() else { break };
            after = Some(last.digest);
            all.extend(batch.into_iter().map(|listed| (listed.digest, listed.provenance)));
        }
        for (digest, provenance) in self.lent.all() {
            all.entry(digest).or_insert(provenance);
        }
        self.list_at = None;
        self.holdings.replace(all);
        self.flush();
    }

    async fn run(&mut self, store: &Store, events: &mut Events) {
        let mut rings = self.inner.ring.clone();
        rings.mark_changed();
        loop {
            self.send();
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::Kept(digest, provenance)) => {
                        self.holdings.keep(digest, &provenance);
                        self.hurry();
                    }
                    Some(Event::Gone(digest)) => {
                        self.look_at_containerd(&digest);
                        self.hurry();
                    }
                    // That it is gone was said before.
                    Some(Event::Damaged(_)) => {}
                    Some(Event::Missed) => self.list(store).await,
                    None => return,
                },
                () = until(self.list_at) => self.list(store).await,
                () = until(self.flush_at) => self.flush(),
                () = until(self.spread_at) => self.spread(),
                changed = self.lent.changed() => self.containerd_changed(store, &changed).await,
                () = until(Some(self.renew_at)) => self.renew(),
                Some(called) = self.calls.next(), if !self.calls.is_empty() => self.called(called),
                changed = rings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let ring = rings.borrow_and_update().clone();
                    self.ring_changed(ring);
                }
            }
        }
    }

    /// What the store holds is told as the store says it.
    async fn containerd_changed(&mut self, store: &Store, changed: &[Digest]) {
        for some in changed.chunks(ASKED) {
            let holdings = store.holdings(some.to_vec()).await;
            for (digest, _) in some.iter().zip(holdings).filter(|(_, holding)| holding.is_none()) {
                self.look_at_containerd(digest);
            }
        }
        self.hurry();
    }

    /// The store doesn't hold it: whether it is held is containerd's to say.
    fn look_at_containerd(&mut self, digest: &Digest) {
        match self.lent.provenance(digest) {
            Some(provenance) => self.holdings.keep(*digest, &provenance),
            None => self.holdings.drop(digest),
        }
    }

    fn hurry(&mut self) {
        if self.holdings.has_news() {
            self.flush_at.get_or_insert_with(|| Instant::now() + BATCH);
        }
    }

    /// What has changed, for its owners.
    fn flush(&mut self) {
        self.flush_at = None;
        for shelf in self.holdings.news() {
            for owner in self.ring.owners(shelf.bucket).iter() {
                let todo = self.todo.entry(owner).or_default();
                if !todo.whole.contains(&shelf.bucket) {
                    todo.news.push(shelf.clone());
                }
            }
        }
        self.inner.metrics.set_announced(self.holdings.len());
    }

    fn ring_changed(&mut self, ring: Arc<Ring>) {
        let before = std::mem::replace(&mut self.ring, ring);
        self.todo.retain(|owner, _| self.ring.member(*owner).is_some());
        let start = |ring: &Ring, node| ring.member(node).map(|member| member.start);
        let buckets: Vec<Bucket> = self.holdings.filled().collect();
        for bucket in buckets {
            let known: Vec<_> = before.owners(bucket).iter().map(|owner| (owner, start(&before, owner))).collect();
            for owner in self.ring.owners(bucket).iter() {
                // One that was started anew has lost what it was told.
                if !known.contains(&(owner, start(&self.ring, owner))) {
                    self.spread.insert((owner, bucket));
                }
            }
        }
        self.spread_within(Duration::ZERO);
    }

    /// Sees to it that what is to be spread is, after a while and a moment by chance.
    fn spread_within(&mut self, after: Duration) {
        if !self.spread.is_empty() {
            let at = Instant::now() + after + rand::rng().random_range(Duration::ZERO..JITTER);
            self.spread_at = Some(self.spread_at.map_or(at, |known| known.min(at)));
        }
    }

    /// All of some buckets, for owners that don't know them.
    fn spread(&mut self) {
        self.spread_at = None;
        for (owner, bucket) in std::mem::take(&mut self.spread) {
            if self.ring.owners(bucket).contains(owner) {
                self.todo.entry(owner).or_default().tell_all(bucket);
            }
        }
    }

    fn renew(&mut self) {
        self.renew_at = Instant::now() + RENEW.mul_f64(rand::rng().random_range(0.8..1.2));
        let buckets: Vec<Bucket> = self.holdings.filled().collect();
        for bucket in buckets {
            for owner in self.ring.owners(bucket).iter() {
                self.todo.entry(owner).or_default().unchanged.insert(bucket);
            }
        }
    }

    /// Begins the calls that may be made now.
    fn send(&mut self) {
        while self.calls.len() < AT_ONCE {
            let idle = self.todo.keys().find(|owner| !self.busy.contains(owner)).copied();
            let Some(owner) = idle else { return };
            let Some(todo) = self.todo.get_mut(&owner) else { return };
            let shelves = todo.take(&self.holdings);
            if todo.is_empty() {
                self.todo.remove(&owner);
            }
            if shelves.is_empty() {
                continue;
            }
            self.busy.insert(owner);
            let inner = Arc::clone(&self.inner);
            self.calls.push(Box::pin(async move {
                let buckets = shelves.iter().map(|shelf| shelf.bucket).collect();
                Called { owner, buckets, outcome: inner.announce(owner, shelves).await }
            }));
        }
    }

    fn called(&mut self, called: Called) {
        let Called { owner, buckets, outcome } = called;
        self.busy.remove(&owner);
        match outcome {
            Ok(announced) => {
                for bucket in announced.unknown {
                    self.todo.entry(owner).or_default().tell_all(bucket);
                }
                // It will know better in a moment, or we do.
                self.later(owner, announced.not_owned);
            }
            Err(error) => {
                tracing::debug!(%owner, %error, "an owner isn't told what is held here");
                self.later(owner, buckets);
            }
        }
    }

    fn later(&mut self, owner: NodeId, buckets: Vec<Bucket>) {
        if self.ring.member(owner).is_none() {
            return;
        }
        self.spread.extend(buckets.into_iter().map(|bucket| (owner, bucket)));
        self.spread_within(AGAIN);
    }
}

impl Todo {
    fn tell_all(&mut self, bucket: Bucket) {
        self.whole.insert(bucket);
        self.unchanged.remove(&bucket);
        self.news.retain(|shelf| shelf.bucket != bucket);
    }

    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.news.is_empty() && self.unchanged.is_empty()
    }

    /// As much as one message holds: each bucket once.
    fn take(&mut self, holdings: &Holdings) -> Vec<Shelf> {
        let (mut shelves, mut told, mut said) = (Vec::new(), BTreeSet::new(), 0);
        let mut has_room = |shelf: &Shelf| {
            said += shelf.added.len() + shelf.dropped.len();
            said <= MOST_HOLDINGS
        };
        while let Some(bucket) = self.whole.first().copied() {
            let shelf = holdings.whole(bucket);
            if !has_room(&shelf) && !shelves.is_empty() {
                return shelves;
            }
            self.whole.remove(&bucket);
            told.insert(bucket);
            shelves.push(shelf);
        }
        let mut left = Vec::new();
        for shelf in std::mem::take(&mut self.news) {
            // What is told of a bucket is told in order.
            if left.is_empty() && !told.contains(&shelf.bucket) && (has_room(&shelf) || shelves.is_empty()) {
                told.insert(shelf.bucket);
                shelves.push(shelf);
            } else {
                left.push(shelf);
            }
        }
        self.news = left;
        for bucket in std::mem::take(&mut self.unchanged) {
            if !told.contains(&bucket) && !self.news.iter().any(|shelf| shelf.bucket == bucket) {
                shelves.push(holdings.unchanged(bucket));
            }
        }
        shelves
    }
}
