use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::image::{NodeId, Zone};

use super::identity::Identity;

/// A node of the cluster, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which node.
    pub node: NodeId,
    /// Where it takes connections and datagrams.
    pub addr: SocketAddr,
    /// Where it stands.
    pub zone: Zone,
    /// Which process of the node: another number means that what it remembered is gone.
    pub start: u64,
    /// It has been a member for long enough to own buckets.
    pub settled: bool,
}

/// Everybody that has been heard of, but this node.
#[derive(Debug, Default)]
pub(super) struct Known {
    nodes: BTreeMap<NodeId, Person>,
    count: usize,
    /// Grows with every change of what [`Self::members`] gives.
    generation: u64,
}

/// A member that is up in a later life.
pub(super) enum Renamed {
    /// It is another process.
    Restarted(Member),
    /// It is at another address.
    Moved(Member),
}

/// A node by its latest life.
#[derive(Debug)]
struct Person {
    identity: Identity,
    up: bool,
    settled: bool,
}

impl Person {
    fn member(&self) -> Member {
        Member {
            node: self.identity.node(),
            addr: self.identity.socket(),
            zone: self.identity.zone(),
            start: self.identity.run().start,
            settled: self.settled,
        }
    }
}

impl Known {
    /// The latest life of a node that is known, dead or alive.
    pub(super) fn identity(&self, node: NodeId) -> Option<&Identity> {
        self.nodes.get(&node).map(|person| &person.identity)
    }

    /// Is it up, in this very life?
    pub(super) fn is_up(&self, identity: &Identity) -> bool {
        self.nodes.get(&identity.node()).is_some_and(|person| person.up && person.identity == *identity)
    }

    pub(super) fn is_settled(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|person| person.settled)
    }

    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// Something else than the others has changed.
    pub(super) const fn touch(&mut self) {
        self.generation += 1;
    }

    /// How many are up.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Those that are up.
    pub(super) fn members(&self) -> impl Iterator<Item = Member> {
        self.nodes.values().filter(|person| person.up).map(Person::member)
    }

    /// Those that are up and settled.
    pub(super) fn settled(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(|(_, person)| person.settled).map(|(node, _)| *node)
    }

    /// Those that are up: the node, its start, and whether it is settled.
    pub(super) fn up(&self) -> impl Iterator<Item = (NodeId, u64, bool)> {
        let up = self.nodes.iter().filter(|(_, person)| person.up);
        up.map(|(node, person)| (*node, person.identity.run().start, person.settled))
    }

    /// It has come up. `None` if it was already.
    pub(super) fn rise(&mut self, identity: &Identity) -> Option<Member> {
        let person = self.nodes.entry(identity.node()).or_insert_with(|| Person {
            identity: identity.clone(),
            up: false,
            settled: false,
        });
        person.identity = identity.clone();
        if person.up {
            return None;
        }
        person.up = true;
        person.settled = false;
        self.count += 1;
        self.generation += 1;
        Some(person.member())
    }

    /// It is down. `None` if it was already.
    pub(super) fn fall(&mut self, identity: &Identity) -> Option<Member> {
        let person = self.nodes.get_mut(&identity.node())?;
        person.identity = identity.clone();
        if !person.up {
            return None;
        }
        let member = person.member();
        person.up = false;
        person.settled = false;
        self.count -= 1;
        self.generation += 1;
        Some(member)
    }

    /// It goes on in a later life.
    pub(super) fn rename(&mut self, identity: &Identity) -> Option<Renamed> {
        let person = self.nodes.get_mut(&identity.node())?;
        let is_other = person.identity.run().start != identity.run().start;
        let is_elsewhere = person.identity.socket() != identity.socket();
        person.identity = identity.clone();
        if !person.up {
            return None;
        }
        self.generation += 1;
        if is_other {
            person.settled = false;
            return Some(Renamed::Restarted(person.member()));
        }
        is_elsewhere.then(|| Renamed::Moved(person.member()))
    }

    /// It may own buckets from now on, if it is still up in this process. Whether that is new.
    pub(super) fn settle(&mut self, node: NodeId, start: u64) -> bool {
        let Some(person) = self.nodes.get_mut(&node) else { return false };
        let is_new = person.up && !person.settled && person.identity.run().start == start;
        if is_new {
            person.settled = true;
            self.generation += 1;
        }
        is_new
    }

    /// Forgets one that is down.
    pub(super) fn forget(&mut self, identity: &Identity) {
        if self.nodes.get(&identity.node()).is_some_and(|person| !person.up && person.identity == *identity) {
            self.nodes.remove(&identity.node());
        }
    }

    /// Forgets everybody; those that were up.
    pub(super) fn clear(&mut self) -> Vec<Member> {
        let members = self.members().collect();
        self.nodes.clear();
        self.count = 0;
        self.generation += 1;
        members
    }
}
