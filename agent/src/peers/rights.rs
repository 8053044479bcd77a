//! Who may pull what of private repositories, as registries told any node. What a registry said of credentials is kept by
//! the members that rank first for a hash of them; that a blob is one of a repository is said by whoever gives it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use larder_proto::peers::rights_client::RightsClient;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::calls::{CallError, Introducing};
use super::{Backing, Inner, Peers, messages};
use crate::cluster::rights::{Entry, Kept, Opener, Right, Told, newest};
use crate::image::{Digest, NodeId, Registry, Repository};
use crate::store::{Records, Secret};
use crate::upstream::Grant;

/// How long the cluster may take to say what it was told.
const SAID_WITHIN: Duration = Duration::from_secs(1);

/// A blob, and a repository of which it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobOf {
    /// The registry as image names call it.
    pub registry: Registry,
    /// The repository there.
    pub repository: Repository,
    /// The blob.
    pub digest: Digest,
}

impl Peers {
    /// A registry said whether a caller's credentials open a repository: those that keep it for all are told. Nothing else
    /// that a grant may be is told. Takes two seconds at most.
    pub async fn tell_right(&self, grant: &Grant, registry: &Registry, repository: &Repository, right: Right) {
        match &self.0 {
            Backing::Cluster(inner) => inner.tell_right(&inner.openers(grant, registry, repository), right).await,
            #[cfg(test)]
            Backing::Script(script) => script.told_right(right),
        }
    }

    /// What was told last of a caller's credentials and a repository. Takes a second at most.
    pub async fn right(&self, grant: &Grant, registry: &Registry, repository: &Repository) -> Option<Kept> {
        match &self.0 {
            Backing::Cluster(inner) => inner.right(&inner.openers(grant, registry, repository)).await,
            #[cfg(test)]
            Backing::Script(script) => script.right(),
        }
    }

    /// Whether another node knows a blob as one of a repository. Takes a second at most.
    pub async fn knows(&self, node: NodeId, of: &BlobOf) -> bool {
        match &self.0 {
            Backing::Cluster(inner) => inner.knows(node, of).await,
            #[cfg(test)]
            Backing::Script(script) => script.knows(node),
        }
    }
}

impl Inner {
    /// What tells these credentials and this repository from all others, under each key while the cluster's is being
    /// replaced; the first is the one that stays.
    fn openers(&self, grant: &Grant, registry: &Registry, repository: &Repository) -> Vec<Opener> {
        let Grant::Credentials(credentials) = grant else { return Vec::new() };
        let (registry, repository) = (registry.as_str().as_bytes(), repository.as_str().as_bytes());
        let keys = self.identity.cluster_keys(b"rights");
        let opener = |key| {
            credentials.hashed_by(|[kind, name, secret]| {
                Opener(Secret::new(key).hash(&[kind, name, secret, registry, repository]))
            })
        };
        keys.iter().map(opener).collect()
    }

    async fn tell_right(&self, openers: &[Opener], right: Right) {
        if self.remember.is_zero() {
            return;
        }
        // A refusal holds for what was told under the key before, too.
        let most = if right == Right::Opened { 1 } else { openers.len() };
        let ring = self.ring();
        let each = openers.iter().take(most);
        let told = each.flat_map(|opener| opener.keepers(&ring, right).into_iter().map(move |keeper| (keeper, opener)));
        join_all(told.map(|(keeper, opener)| async move {
            if let Err(error) = self.tell_keeper(keeper, opener, right).await {
                tracing::debug!(%keeper, ?right, %error, "a member isn't told who may pull what");
            }
        }))
        .await;
    }

    async fn right(&self, openers: &[Opener]) -> Option<Kept> {
        if self.remember.is_zero() {
            return None;
        }
        let ring = self.ring();
        let asked =
            openers.iter().flat_map(|opener| opener.asked(&ring).into_iter().map(move |keeper| (keeper, opener)));
        let said = join_all(asked.map(|(keeper, opener)| async move {
            match timeout(SAID_WITHIN, self.ask_keeper(keeper, opener)).await {
                Ok(Ok(kept)) => kept,
                Ok(Err(error)) => {
                    tracing::debug!(%keeper, %error, "a member doesn't say who may pull what");
                    None
                }
                Err(_) => None,
            }
        }))
        .await;
        newest(said.into_iter().flatten()).filter(|kept| kept.age < self.remember)
    }

    async fn knows(&self, node: NodeId, of: &BlobOf) -> bool {
        let asked = async {
            let mut client = self.rights_of(node)?;
            self.at_once(node, client.knows(messages::knows_of(of))).await
        };
        match timeout(SAID_WITHIN, asked).await {
            Ok(Ok(reply)) => reply.knows,
            Ok(Err(error)) => {
                tracing::debug!(%node, %error, "a member doesn't say whose a blob is");
                false
            }
            Err(_) => false,
        }
    }

    fn rights_of(&self, node: NodeId) -> Result<RightsClient<Introducing>, CallError> {
        let (channel, introduced) = self.introduced(node)?;
        Ok(RightsClient::with_interceptor(channel, introduced))
    }

    async fn tell_keeper(&self, keeper: NodeId, opener: &Opener, right: Right) -> Result<(), CallError> {
        if keeper == self.node {
            self.right_told(keeper, *opener, right).await;
            return Ok(());
        }
        let mut client = self.rights_of(keeper)?;
        self.at_once(keeper, client.tell(messages::right_told_of(opener, right))).await.map(drop)
    }

    async fn ask_keeper(&self, keeper: NodeId, opener: &Opener) -> Result<Option<Kept>, CallError> {
        if keeper == self.node {
            return Ok(self.right_kept(opener).await);
        }
        let mut client = self.rights_of(keeper)?;
        let reply = self.at_once(keeper, client.ask(messages::right_request_of(opener))).await?;
        Ok(messages::right_kept(&reply))
    }

    /// As a keeper: what a registry said to `from`, as of now. It outlives this process.
    pub(super) async fn right_told(&self, from: NodeId, opener: Opener, right: Right) {
        let mut told = self.told.lock().await;
        let told = self.restored(&mut told).await;
        for (opener, entry) in told.told(since_1970(), from, opener, right) {
            let Opener(hash) = opener;
            let record =
                entry.map(|Entry { right, at, by }| Record { hash, right, at: at.as_secs(), by: *by.as_bytes() });
            self.store.record(Records::Rights, &opener.to_string(), record.as_ref()).await;
        }
    }

    /// As a keeper: what was told last.
    pub(super) async fn right_kept(&self, opener: &Opener) -> Option<Kept> {
        let mut told = self.told.lock().await;
        self.restored(&mut told).await.kept(since_1970(), opener)
    }

    /// What was told, once it is read from the disk.
    async fn restored<'a>(&self, told: &'a mut Option<Told>) -> &'a mut Told {
        let before = match told.take() {
            Some(told) => told,
            None => {
                let records = self.store.records::<Record>(Records::Rights).await.into_iter();
                let entry = |(_, Record { hash, right, at, by }): (String, Record)| {
                    (Opener(hash), Entry { right, at: Duration::from_secs(at), by: NodeId::new(by) })
                };
                Told::restored(records.map(entry), self.remember)
            }
        };
        told.insert(before)
    }
}

/// An entry as it lies in the store, by its hash as text.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    hash: [u8; 32],
    right: Right,
    at: u64,
    by: [u8; 16],
}

fn since_1970() -> Duration {
    Duration::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
