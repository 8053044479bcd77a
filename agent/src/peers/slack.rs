//! Peers that live and give nothing.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::owner::held;
use crate::image::NodeId;

/// How long such a peer is passed over.
const PASSED_OVER_FOR: Duration = Duration::from_secs(30);

/// Peers that have what this node wants, say every 200 ms that they live, and send nothing: where a disk hangs, say. One wait
/// for such a peer is enough; without this, each blob of a pull would wait as long. They count as such for half a minute, or
/// until they send something after all.
#[derive(Debug, Default)]
pub(super) struct Slack(Mutex<HashMap<NodeId, Instant>>);

impl Slack {
    /// A reading's patience with that peer has ended.
    pub(super) fn kept_waiting(&self, now: Instant, node: NodeId) {
        let mut slack = held(&self.0);
        slack.retain(|_, until| *until > now);
        if slack.insert(node, now + PASSED_OVER_FOR).is_none() {
            tracing::info!(peer = %node, seconds = PASSED_OVER_FOR.as_secs(), "a peer lives and sends nothing: it is passed over");
        }
    }

    /// Bytes came from that peer.
    pub(super) fn gave(&self, node: NodeId) {
        held(&self.0).remove(&node);
    }

    /// Who is to be passed over.
    pub(super) fn all(&self, now: Instant) -> Vec<NodeId> {
        held(&self.0).iter().filter(|(_, until)| **until > now).map(|(node, _)| *node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_passed_over_for_a_while_or_until_it_gives() {
        let (now, slack) = (Instant::now(), Slack::default());
        let (one, other) = (NodeId::new([1; 16]), NodeId::new([2; 16]));
        slack.kept_waiting(now, one);
        slack.kept_waiting(now, other);
        slack.gave(one);
        assert_eq!(slack.all(now), [other]);
        assert_eq!(slack.all(now + PASSED_OVER_FOR), []);
    }
}
