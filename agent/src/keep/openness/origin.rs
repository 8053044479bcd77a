use tokio::time::Instant;

use super::named::Named;
use super::{ASK_AGAIN, Asked, PAGE, Prover};
use crate::containerd::client::Content;
use crate::containerd::inventory::Inventory;
use crate::image::{Access, Digest};

impl Prover {
    /// Finds of what containerd had past us whose it is. containerd names every registry of which a manifest names a blob,
    /// and an image that was loaded from a file has no more than its name: so it is nobody's where more than one registry is
    /// named, by containerd or by an image's name. Each of them then has to deliver it.
    pub(super) async fn find_origins(&self, inventory: &Inventory, named: &Named, asked: &mut Asked) {
        asked.delivered.retain(|_, at| at.elapsed() < ASK_AGAIN);
        let unknown = inventory.contents.values().filter(|content| !asked.delivered.contains_key(&content.digest));
        let unknown: Vec<&Content> = unknown.collect();
        let store = &self.fetcher.surveyor.store;
        for page in unknown.chunks(PAGE) {
            let held = store.provenances(page.iter().map(|content| content.digest).collect()).await;
            for content in page {
                let Some(provenance) = held.get(&content.digest) else { continue };
                if provenance.iter().next().is_none() {
                    if !named.is_of_one_registry(content) {
                        continue;
                    }
                    for (registry, repository) in &content.sources {
                        store.delivered(&content.digest, registry, repository, Access::Authorized).await;
                    }
                }
                asked.delivered.insert(content.digest, Instant::now());
            }
        }
    }
}

impl Named {
    /// Whether containerd names one registry for it, and no image that has it is of another.
    fn is_of_one_registry(&self, content: &Content) -> bool {
        let places = |digest: &Digest| self.places.get(digest).into_iter().flatten();
        let Some(registry) = content.only_registry() else { return false };
        places(&content.digest).all(|place| place.registry == *registry)
    }
}
