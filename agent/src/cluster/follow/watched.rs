//! What the simulation looks at.

use crate::image::NodeId;

use super::{Follow, Source};

impl Follow {
    /// Under whose lease this node fetches.
    pub(crate) const fn owner_of_lease(&self) -> Option<NodeId> {
        match &self.source {
            Source::Lease(range) => Some(range.owner),
            _ => None,
        }
    }

    /// Whom it has asked, and has no answer from yet.
    pub(crate) fn asked(&self) -> impl Iterator<Item = NodeId> {
        self.pending.iter().map(|pending| pending.owner)
    }
}
