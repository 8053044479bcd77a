use std::time::Duration;

use crate::cluster::checks::{Allowance, Answer};
use crate::image::Registry;
use crate::peers::{Granted, Grants, Membership};

/// When to ask again while this node isn't in its cluster: it may join any moment.
const SOON: Duration = Duration::from_secs(10);

/// Where leave to ask a registry comes from: from the cluster's budgets, or, for a node by itself, from its own.
#[derive(Debug, Clone)]
pub(super) struct Purse {
    peers: Membership,
    own: Grants,
}

impl Purse {
    pub(super) const fn new(peers: Membership, own: Grants) -> Self {
        Self { peers, own }
    }

    /// Asks for one check of a registry. What is granted must begin within the allowance's life, from the call on.
    pub(super) async fn take(&self, registry: &Registry) -> Granted {
        if let Some(peers) = self.peers.peers() {
            return peers.grant_checks(registry, 1).await;
        }
        match self.own.ask(registry, 1).await {
            Answer::Granted(granted) => Granted::Now(granted),
            Answer::Later(wait) => Granted::Later(wait),
            Answer::Unsure(wait) => Granted::Later(wait.min(SOON)),
            Answer::NotOwner => Granted::Later(SOON),
        }
    }

    /// What a registry's budget allows; `None`: no checks.
    pub(super) fn allowance(&self, registry: &Registry) -> Option<Allowance> {
        self.own.allowance(registry)
    }
}
