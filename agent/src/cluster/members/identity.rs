use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::image::{NodeId, Zone};

/// The version of the packets and rules that this build speaks.
pub(super) const PROTOCOL: u8 = 1;

/// The renewal of the life in which a process says good-bye: none comes after it.
const LAST: u32 = u32::MAX;

/// Which life of a node is meant: of two that claim the same node, the later one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run {
    /// Its process: a number that grows with every start, milliseconds since 1970 or more.
    pub start: u64,
    /// How often this process has had to come back after it was taken for dead.
    pub renewal: u32,
}

/// A node as it introduces itself to the others. Small and cheap to clone: there is one for every member on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    #[serde(with = "node")]
    node: NodeId,
    ip: IpAddr,
    port: u16,
    version: u8,
    run: Run,
    /// `None`: nobody says.
    #[serde(with = "zone")]
    zone: Option<Arc<Zone>>,
}

impl Identity {
    /// The node `node` at `addr`, from the start of its process on.
    ///
    /// `start` must be higher than that of every earlier process of the node.
    #[must_use]
    pub fn new(node: NodeId, addr: SocketAddr, zone: Zone, start: u64) -> Self {
        let zone = (!zone.as_str().is_empty()).then(|| Arc::new(zone));
        let run = Run { start, renewal: 0 };
        Self { node, ip: addr.ip().to_canonical(), port: addr.port(), version: PROTOCOL, run, zone }
    }

    /// Which node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Where it receives datagrams and connections.
    #[must_use]
    pub const fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    /// Where it stands.
    #[must_use]
    pub fn zone(&self) -> Zone {
        self.zone.as_deref().cloned().unwrap_or_default()
    }

    /// Which life of the node.
    #[must_use]
    pub const fn run(&self) -> Run {
        self.run
    }

    /// Which of two that claim the same node counts. The address decides between lives that began at the same moment.
    pub(super) fn outlives(&self, other: &Self) -> bool {
        (self.run, self.ip, self.port) > (other.run, other.ip, other.port)
    }

    /// The same node in the same place, come back.
    pub(super) fn renewed(&self) -> Self {
        let run = Run { renewal: self.run.renewal.saturating_add(1), ..self.run };
        Self { run, ..self.clone() }
    }

    /// The same process at another address.
    pub(super) fn moved(&self, addr: SocketAddr) -> Self {
        Self { ip: addr.ip().to_canonical(), port: addr.port(), ..self.renewed() }
    }

    /// The same process in its last life, in which it says good-bye: so whoever hears that it is down knows why.
    pub(super) fn leaving(&self) -> Self {
        Self { run: Run { renewal: LAST, ..self.run }, ..self.clone() }
    }

    /// Whether it has said good-bye.
    pub(super) const fn has_left(&self) -> bool {
        self.run.renewal == LAST
    }

    /// The same node in the same place, as if started after `other`.
    pub(super) fn after(&self, other: &Self) -> Self {
        let run = Run { start: self.run.start.max(other.run.start).saturating_add(1), renewal: 0 };
        Self { run, ..self.clone() }
    }
}

impl foca::Identity for Identity {
    /// What is the same for all lives of a node: a new one takes the place of the old one at once.
    type Addr = NodeId;

    fn addr(&self) -> NodeId {
        self.node
    }

    /// The machine renews itself ([`super::Members`]): it knows what is claimed in its name, and paces itself.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.outlives(adversary)
    }
}

mod node {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::image::NodeId;

    pub(super) fn serialize<S: Serializer>(node: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
        node.as_bytes().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
        <[u8; 16]>::deserialize(deserializer).map(NodeId::new)
    }
}

mod zone {
    use std::sync::Arc;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::image::Zone;

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(super) fn serialize<S: Serializer>(zone: &Option<Arc<Zone>>, serializer: S) -> Result<S::Ok, S::Error> {
        zone.as_deref().map_or("", Zone::as_str).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<Zone>>, D::Error> {
        match <&str>::deserialize(deserializer)? {
            "" => Ok(None),
            name => name.parse().map(|zone| Some(Arc::new(zone))).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(addr: &str, start: u64) -> Identity {
        Identity::new(NodeId::new([7; 16]), addr.parse().unwrap(), "eu-1".parse().unwrap(), start)
    }

    #[test]
    fn a_later_life_counts_whatever_the_address() {
        let old = identity("10.0.0.9:7441", 1);
        let new = identity("10.0.0.1:7441", 2);
        assert!(new.outlives(&old) && !old.outlives(&new));
        assert!(new.outlives(&old.renewed()));
        assert!(old.renewed().outlives(&old));
        assert!(old.moved(new.socket()).outlives(&old) && new.outlives(&old.moved(new.socket())));
        assert!(old.leaving().outlives(&old.renewed()) && new.outlives(&old.leaving()));
        assert!(old.leaving().has_left() && !old.renewed().has_left());
        assert!(old.after(&new.renewed()).outlives(&new.renewed()));
        assert!(!old.outlives(&old.clone()));
    }

    #[test]
    fn it_is_small_on_the_wire_and_in_memory() {
        let bytes = postcard::to_allocvec(&identity("10.0.0.9:7441", 1_790_000_000_000)).unwrap();
        assert!(bytes.len() <= 40, "{} bytes", bytes.len());
        assert!(size_of::<foca::Member<Identity>>() <= 72);
        assert_eq!(postcard::from_bytes::<Identity>(&bytes).unwrap(), identity("10.0.0.9:7441", 1_790_000_000_000));
    }

    #[test]
    fn a_zone_from_the_wire_is_held_to_its_grammar() {
        let good = identity("10.0.0.9:7441", 1);
        let mut bytes = postcard::to_allocvec(&good).unwrap();
        *bytes.last_mut().unwrap() = b' ';
        assert!(postcard::from_bytes::<Identity>(&bytes).is_err());
    }

    #[test]
    fn an_address_has_one_spelling() {
        assert_eq!(identity("[::ffff:10.0.0.9]:7441", 1), identity("10.0.0.9:7441", 1));
    }
}
