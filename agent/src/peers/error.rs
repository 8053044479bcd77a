use crate::cluster::chain::Parting;
use crate::image::NodeId;

/// Why a peer didn't give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection, or it broke.
    #[error("peer {node} can't be reached: {why}")]
    Unreachable {
        /// Which.
        node: NodeId,
        /// As the connection says.
        why: String,
    },
    /// Nothing came from it for too long.
    #[error("peer {node} fell silent")]
    Silent {
        /// Which.
        node: NodeId,
    },
    /// Bytes came that aren't what was sent.
    #[error("what peer {node} sent doesn't have the checksum that it sent with it")]
    Damaged {
        /// Which.
        node: NodeId,
    },
    /// It said something that makes no sense.
    #[error("peer {node} says what can't be: {what}")]
    Senseless {
        /// Which.
        node: NodeId,
        /// What.
        what: &'static str,
    },
    /// It doesn't give it, or no more of it: the turn changes.
    #[error("peer {node} parts: {}", label(parting))]
    Parted {
        /// Which.
        node: NodeId,
        /// How.
        parting: Parting,
    },
}

impl PeerError {
    /// For metrics.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => "dead",
            Self::Damaged { .. } => "damaged",
            Self::Senseless { .. } => "senseless",
            Self::Parted { parting, .. } => label(parting),
        }
    }
}

/// A way to part, for logs and metrics.
#[must_use]
pub const fn label(parting: &Parting) -> &'static str {
    match parting {
        Parting::Held => "held",
        Parting::Sent => "sent",
        Parting::Broken(_) => "broken",
        Parting::Yielded => "yielded",
        Parting::Displaced => "displaced",
        Parting::NotLower => "not_lower",
        Parting::Absent => "absent",
        Parting::Full(_) => "full",
        Parting::Failed => "failed",
        Parting::Stopping => "stopping",
    }
}
