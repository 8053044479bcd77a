//! What a node may have by credentials of its own: where the configuration says so (`outage = "node"`), they speak for all
//! who pull on it while the registry can't be asked. For registries whose passwords live for hours, an outage brings another
//! one, whose hash nobody knows.

use std::collections::HashSet;

use super::permit::now;
use super::{Inner, Kind, Place, Pull, Wanted};
use crate::config::{Config, Outage};
use crate::image::{Access, Digest, Registry};
use crate::upstream::Grant;

/// The registries for which a node's own credentials speak: none, where nothing is remembered.
pub(super) fn spoken_for(config: &Config) -> HashSet<Registry> {
    let remembers = !config.private.remember.0.is_zero();
    let by_node = config.registries.iter().filter(|registry| remembers && registry.outage == Outage::Node);
    by_node.map(|registry| registry.name.clone()).collect()
}

impl Pull {
    /// Whether a node's own credentials speak for who pulls from a registry there, while it can't be asked.
    #[must_use]
    pub fn counts_for_node(&self, registry: &Registry) -> bool {
        self.0.by_node.contains(registry)
    }

    /// Asks a registry for a manifest as the agent itself, and learns from what it says. Whether the agent's credentials
    /// open it; `None`: there was no answer.
    pub async fn opens_to_node(&self, place: &Place, manifest: &Digest) -> Option<bool> {
        let pull = &self.0;
        let ask = async {
            let own = pull.upstreams.own_grant(&place.registry, &place.repository).await;
            // What an upstream's own `credentials` open, they open for who brings none.
            let grant = own.unwrap_or(Grant::Anonymous);
            let wanted = Wanted { place: place.clone(), grant, digest: *manifest, kind: Kind::Manifest };
            pull.look_for(&wanted).await
        };
        match tokio::time::timeout(pull.options.reply_deadline, ask).await.ok()? {
            Ok(Access::Authorized) => {
                if let Some(hash) = pull.by_node(place) {
                    pull.store.remember(hash, now()).await;
                }
                Some(true)
            }
            // It opened without: that says nothing of the credentials.
            Ok(Access::Anonymous) => Some(false),
            Err(said) => said.iter().any(|error| error.is_answer()).then_some(false),
        }
    }
}

impl Inner {
    /// What is remembered of a repository that the node opened as itself, where that counts and this is the node.
    pub(super) fn opened_as_node(&self, place: &Place, grant: &Grant) -> Option<[u8; 32]> {
        match grant {
            Grant::Credentials(_) => None,
            Grant::None | Grant::Anonymous | Grant::Own(_) => self.by_node(place),
        }
    }

    /// Whether the node opened it as itself, and that counts.
    pub(super) async fn is_opened_by_node(&self, place: &Place) -> bool {
        match self.by_node(place) {
            Some(hash) => self.is_remembered(hash).await,
            None => false,
        }
    }

    fn by_node(&self, place: &Place) -> Option<[u8; 32]> {
        let (registry, repository) = (place.registry.as_str().as_bytes(), place.repository.as_str().as_bytes());
        let counts = self.by_node.contains(&place.registry);
        counts.then(|| self.store.keyed_hash(&[b"node", registry, repository]))
    }
}
