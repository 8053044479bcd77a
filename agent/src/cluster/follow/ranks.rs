//! Which owner to ask.

use std::time::Duration;

use crate::cluster::Owners;
use crate::image::NodeId;

/// How long an owner that failed is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Ranks {
    owners: Owners,
    failed: Vec<(NodeId, Duration)>,
}

impl Ranks {
    pub(super) const fn new(owners: Owners) -> Self {
        Self { owners, failed: Vec::new() }
    }

    pub(super) const fn owners(&self) -> Owners {
        self.owners
    }

    pub(super) fn change(&mut self, owners: Owners) {
        self.owners = owners;
    }

    pub(super) fn failed(&mut self, now: Duration, owner: NodeId) {
        self.failed.retain(|(node, until)| *node != owner && now < *until);
        self.failed.push((owner, now + LEFT_ALONE));
    }

    /// It lives after all.
    pub(super) fn answers(&mut self, owner: NodeId) {
        self.failed.retain(|(node, _)| *node != owner);
    }

    pub(super) fn is_left_alone(&self, now: Duration, owner: NodeId) -> bool {
        self.failed.iter().any(|(node, until)| *node == owner && now < *until)
    }

    /// The best of those who aren't left alone, but `other`.
    pub(super) fn best(&self, now: Duration, other: Option<NodeId>) -> Option<NodeId> {
        self.owners.iter().find(|owner| Some(*owner) != other && !self.is_left_alone(now, *owner))
    }

    /// Is there one before this one?
    pub(super) fn is_second(&self, owner: NodeId) -> bool {
        self.owners.first != Some(owner)
    }
}
