//! What containerd holds, taken into the store without a second copy; and given up when containerd gives it up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Catalog;
use super::collect::Collector;
use super::survey::Surveyor;
use crate::containerd::client::Content;
use crate::containerd::inventory::Inventory;
use crate::image::{Digest, MediaType};
use crate::store::{AdoptError, Adopted, Found, Held, Store};

/// What couldn't be adopted is tried again after so long.
const RETRY: Duration = Duration::from_secs(600);
/// How many blobs the store is asked for at a time.
const PAGE: usize = 2048;

/// Who follows what containerd holds.
pub(super) struct Adopter {
    pub(super) surveyor: Arc<Surveyor>,
    pub(super) collector: Arc<Collector>,
    pub(super) inventory: watch::Receiver<Option<Arc<Inventory>>>,
    pub(super) catalog: watch::Receiver<Arc<Catalog>>,
    pub(super) spoilt: Spoilt,
}

/// What couldn't be adopted, and since when.
type Refused = HashMap<Digest, Instant>;

/// What containerd holds and can't be used: its bytes are wrong. It has to be had from elsewhere.
#[derive(Debug, Clone, Default)]
pub(super) struct Spoilt(Arc<Mutex<HashSet<Digest>>>);

impl Spoilt {
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    fn note(&self, digest: Digest, is_wrong: bool) {
        let mut spoilt = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if is_wrong {
            spoilt.insert(digest)
        } else {
            spoilt.remove(&digest)
        };
    }
}

impl Adopter {
    /// Adopts what containerd holds, until `stop`.
    pub(super) async fn adopt_until(&self, stop: CancellationToken) {
        let mut inventory = self.inventory.clone();
        let mut refused = HashMap::new();
        loop {
            let round = async {
                let now = inventory.borrow_and_update().clone();
                if let Some(now) = now {
                    self.adopt_all(&now, &inventory, &mut refused).await;
                }
                tokio::select! {
                    changed = inventory.changed() => if changed.is_err() { std::future::pending::<()>().await },
                    () = tokio::time::sleep(RETRY) => {}
                }
            };
            if stop.run_until_cancelled(round).await.is_none() {
                return;
            }
        }
    }

    /// Tells the store what containerd doesn't hold any more, until `stop`.
    pub(super) async fn release_until(&self, stop: CancellationToken) {
        let mut inventory = self.inventory.clone();
        let mut before: Option<Arc<BTreeMap<Digest, Content>>> = None;
        loop {
            let round = async {
                let now = inventory.borrow_and_update().clone();
                if let Some(now) = now {
                    let released = match &before {
                        Some(before) => before.keys().filter(|key| !now.contents.contains_key(key)).copied().collect(),
                        // What containerd gave up while nobody looked.
                        None => {
                            self.borrowed().await.into_iter().filter(|key| !now.contents.contains_key(key)).collect()
                        }
                    };
                    before = Some(Arc::clone(&now.contents));
                    self.release(released).await;
                }
                if inventory.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            if stop.run_until_cancelled(round).await.is_none() {
                return;
            }
        }
    }

    async fn release(&self, released: Vec<Digest>) {
        if released.is_empty() {
            return;
        }
        debug!(blobs = released.len(), "containerd gave up blobs");
        for some in released.chunks(PAGE) {
            self.store().released(some).await;
        }
        self.collector.let_go(&released).await;
    }

    /// What the store has with containerd.
    async fn borrowed(&self) -> Vec<Digest> {
        let (mut borrowed, mut after) = (Vec::new(), None);
        loop {
            let page = self.store().list(after.as_ref(), PAGE).await;
            let Some(last) = page.last() else { return borrowed };
            after = Some(last.digest);
            borrowed.extend(page.iter().filter(|listed| listed.held != Held::Own).map(|listed| listed.digest));
        }
    }

    /// Adopts what isn't adopted yet, small blobs first: they say what the others are. Ends early when there is a newer
    /// inventory.
    async fn adopt_all(&self, now: &Inventory, newer: &watch::Receiver<Option<Arc<Inventory>>>, refused: &mut Refused) {
        let Some(root) = &now.content_root else { return };
        refused.retain(|digest, at| at.elapsed() < RETRY && now.contents.contains_key(digest));
        let mut todo = self.not_adopted(&now.contents, refused).await;
        if todo.is_empty() {
            return;
        }
        todo.sort_by_key(|content| content.size);
        let media_types = self.media_types();
        let begun = Instant::now();
        let (mut blobs, mut bytes) = (0, 0);
        for content in todo {
            if newer.has_changed().unwrap_or(false) {
                break;
            }
            let digest = content.digest;
            let path = root.join("blobs").join(digest.algorithm()).join(digest.hex());
            let media_type = media_types.get(&digest).cloned();
            let found = Found { path, size: content.size, media_type, sources: content.sources.clone() };
            match self.store().adopt(&digest, found).await {
                Ok(adopted) => {
                    self.spoilt.note(digest, false);
                    match adopted {
                        // A copy of our own that can't be linked.
                        Adopted::Already => {
                            refused.insert(digest, Instant::now());
                        }
                        Adopted::Linked | Adopted::Reflinked | Adopted::LeftInPlace => {
                            blobs += 1;
                            bytes += content.size;
                        }
                    }
                }
                // containerd had removed it by then.
                Err(AdoptError::Gone { .. }) => {
                    refused.insert(digest, Instant::now());
                }
                Err(AdoptError::Ending) => return,
                Err(error) => {
                    self.spoilt.note(digest, matches!(error, AdoptError::Wrong { .. }));
                    warn!(%digest, %error, "what containerd holds can't be used");
                    refused.insert(digest, Instant::now());
                }
            }
        }
        if blobs > 0 {
            info!(blobs, bytes, seconds = begun.elapsed().as_secs_f64(), "adopted what containerd holds");
        }
    }

    async fn not_adopted<'a>(&self, contents: &'a BTreeMap<Digest, Content>, refused: &Refused) -> Vec<&'a Content> {
        let all: Vec<&Content> = contents.values().collect();
        let mut todo = Vec::new();
        for page in all.chunks(PAGE) {
            let holdings = self.store().holdings(page.iter().map(|content| content.digest).collect()).await;
            let missing = page.iter().zip(holdings).filter(|(content, holding)| {
                holding.is_none_or(|holding| holding.held == Held::Own)
                    && !refused.contains_key(&content.digest)
                    && !self.is_ignored(content)
            });
            todo.extend(missing.map(|(content, _)| *content));
        }
        todo
    }

    /// Whether it belongs to images alone that are passed through.
    fn is_ignored(&self, content: &Content) -> bool {
        let mut sources = content.sources.iter();
        !content.sources.is_empty() && sources.all(|(registry, repository)| self.surveyor.ignores(registry, repository))
    }

    /// What manifests call what they name.
    fn media_types(&self) -> HashMap<Digest, MediaType> {
        let catalog = self.catalog.borrow().clone();
        let parts = catalog.images.iter().flat_map(|known| &known.parts);
        parts.map(|part| (part.digest, part.media_type.clone())).collect()
    }

    fn store(&self) -> &Store {
        &self.surveyor.store
    }
}
