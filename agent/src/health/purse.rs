use crate::cluster::checks::Answer;
use crate::image::Registry;
use crate::peers::{Granted, Grants, Peers};

/// Where leave to ask a registry comes from.
#[derive(Debug, Clone)]
pub(super) enum Purse {
    /// This node's own budgets.
    Own(Grants),
    /// The cluster's.
    Shared(Peers),
}

impl Purse {
    /// Asks for one check of a registry. What is granted must begin within the allowance's life, from the call on.
    pub(super) async fn take(&self, registry: &Registry) -> Granted {
        match self {
            Self::Shared(peers) => peers.grant_checks(registry, 1).await,
            Self::Own(grants) => match grants.ask(registry, 1).await {
                Answer::Granted(granted) => Granted::Now(granted),
                Answer::Later(wait) | Answer::Unsure(wait) => Granted::Later(wait),
                // One by itself owns everything.
                Answer::NotOwner => Granted::Later(std::time::Duration::from_secs(60)),
            },
        }
    }

    /// The budgets that this node keeps.
    pub(super) fn grants(&self) -> &Grants {
        match self {
            Self::Own(grants) => grants,
            Self::Shared(peers) => peers.grants(),
        }
    }
}
