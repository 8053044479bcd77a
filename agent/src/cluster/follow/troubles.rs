//! Who was no use of late.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::chain::{Ailment, Trouble};
use crate::image::NodeId;

const MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<NodeId, (Ailment, Duration)>);

impl Troubles {
    pub(super) fn note(&mut self, now: Duration, node: NodeId, why: Ailment) {
        let lasts = match why {
            Ailment::Full => Duration::from_millis(300),
            Ailment::Silent | Ailment::Slow => Duration::from_secs(5),
            Ailment::Absent => Duration::from_secs(60),
            Ailment::Wrong => Duration::from_secs(3600),
        };
        self.0.retain(|_, (_, until)| now < *until);
        if self.0.len() >= MAX {
            self.0.pop_first();
        }
        self.0.insert(node, (why, now + lasts));
    }

    /// Is there a reason not to read from it now?
    pub(super) fn speaks_against(&self, now: Duration, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|(why, until)| now < *until && *why != Ailment::Slow)
    }

    /// Was it lost, or has it said nothing?
    pub(super) fn is_silent(&self, now: Duration, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|(why, until)| now < *until && *why == Ailment::Silent)
    }

    pub(super) fn list(&self, now: Duration) -> Vec<Trouble> {
        let lasting = self.0.iter().filter(|(_, (_, until))| now < *until);
        lasting.map(|(node, (why, _))| Trouble { node: *node, why: *why }).collect()
    }

    /// What was said of a node holds no more.
    pub(super) fn forgive(&mut self, node: NodeId, what: Ailment) {
        if self.0.get(&node).is_some_and(|(why, _)| *why == what) {
            self.0.remove(&node);
        }
    }

    /// Who is full may have room again.
    pub(super) fn forgive_full(&mut self) {
        self.0.retain(|_, (why, _)| *why != Ailment::Full);
    }
}
