use std::future::pending;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::{GossipMetrics, PeerMetrics, Peers, ShownPart};
use crate::wire::WireMetrics;

/// A node's part in its cluster.
#[derive(Debug, Clone)]
pub enum Part {
    /// No cluster is configured.
    Off,
    /// It has none yet; why, once it has tried.
    Apart(Option<String>),
    /// It is one of the nodes.
    Joined(Peers),
}

/// A node's part in its cluster, as it changes: who can't join at its start may do so later. A cheap clone.
#[derive(Debug, Clone)]
pub struct Membership(watch::Receiver<Part>);

impl Membership {
    /// One that has tried nothing yet, and what tells it what became of that.
    #[must_use]
    pub fn begin() -> (watch::Sender<Part>, Self) {
        let (told, part) = watch::channel(Part::Apart(None));
        (told, Self(part))
    }

    /// That of a node for which no cluster is configured.
    #[must_use]
    pub fn off() -> Self {
        Self(watch::channel(Part::Off).1)
    }

    /// That of a node which is in one.
    #[cfg(test)]
    pub fn of(peers: Peers) -> Self {
        Self(watch::channel(Part::Joined(peers)).1)
    }

    /// The other nodes; `None`: this one is by itself for now.
    #[must_use]
    pub fn peers(&self) -> Option<Peers> {
        match &*self.0.borrow() {
            Part::Joined(peers) => Some(peers.clone()),
            Part::Off | Part::Apart(_) => None,
        }
    }

    /// Whether this node is one of the cluster's.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        matches!(&*self.0.borrow(), Part::Joined(_))
    }

    /// Waits until there are other nodes, for ever if need be.
    pub async fn joined(&self) -> Peers {
        let joined = self.0.clone().wait_for(|part| matches!(part, Part::Joined(_))).await.is_ok();
        match self.peers() {
            Some(peers) if joined => peers,
            _ => pending().await,
        }
    }

    /// Waits until it is known whether this node could join at once.
    pub async fn tried(&self) {
        let _ = self.0.clone().wait_for(|part| !matches!(part, Part::Apart(None))).await;
    }

    /// Waits for the next change, for ever if need be.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            pending::<()>().await;
        }
    }

    /// For people to look at.
    #[must_use]
    pub fn shown(&self) -> ShownPart {
        match &*self.0.borrow() {
            Part::Off => ShownPart::Off,
            Part::Apart(why) => {
                ShownPart::Apart { apart: why.clone().unwrap_or_else(|| "it is about to try".to_owned()) }
            }
            Part::Joined(peers) => ShownPart::Joined(peers.shown()),
        }
    }
}

/// What is counted of a cluster, from before the node is in it. Cheap clones of the same figures.
#[derive(Debug, Clone, Default)]
pub struct ClusterMetrics {
    /// Of what peers give each other.
    pub peers: PeerMetrics,
    pub(super) wire: WireMetrics,
    pub(super) gossip: GossipMetrics,
    pub(super) joined: Gauge,
}

impl ClusterMetrics {
    /// Enters them all.
    pub fn register(&self, registry: &mut Registry) {
        self.peers.register(registry);
        self.wire.register(registry);
        self.gossip.register(registry);
        registry.register(
            "larder_peer_joined",
            "1 while this node takes part in its cluster; 0 while it can't: larder status --peers says why",
            self.joined.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::peers::script::Script;

    #[tokio::test]
    async fn who_joins_late_is_waited_for() {
        let (told, mut membership) = Membership::begin();
        assert!(membership.tried().now_or_never().is_none() && !membership.is_joined());
        told.send_replace(Part::Apart(Some("no ca".to_owned())));
        membership.tried().await;
        membership.changed().await;
        assert!(membership.joined().now_or_never().is_none() && membership.peers().is_none());
        assert!(matches!(membership.shown(), ShownPart::Apart { apart } if apart == "no ca"));
        let waiting = tokio::spawn({
            let membership = membership.clone();
            async move { drop(membership.joined().await) }
        });
        told.send_replace(Part::Joined(Peers::scripted(&Script::default())));
        drop(told);
        waiting.await.unwrap();
        membership.changed().await;
        assert!(membership.is_joined());
        // Nobody tells any more: nothing changes.
        assert!(membership.changed().now_or_never().is_none());
    }

    #[tokio::test]
    async fn without_a_cluster_nobody_is_waited_for_at_the_start() {
        let mut membership = Membership::off();
        membership.tried().await;
        assert!(membership.changed().now_or_never().is_none() && membership.joined().now_or_never().is_none());
        assert!(matches!(membership.shown(), ShownPart::Off));
        // As it goes over the admin socket.
        for (part, text) in [(ShownPart::Off, "null"), (ShownPart::Apart { apart: "x".to_owned() }, r#"{"apart":"x"}"#)]
        {
            assert_eq!(serde_json::to_string(&part).unwrap(), text);
            let read: ShownPart = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }
}
