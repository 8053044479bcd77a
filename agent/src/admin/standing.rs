use std::sync::Arc;

use tokio::sync::watch;

use super::Agent;

/// How far a process is, from its start to its end: what its probes go by.
///
/// Each process is asked at its own socket. Two of them may share a node's ports for a while, and whoever asks there
/// can't tell which one answers.
#[derive(Clone)]
pub enum Standing {
    /// It reads its configuration and looks around.
    Starting,
    /// It is complete but for the store, which another process holds.
    Waiting {
        /// Whether containerd is served meanwhile: by the process that holds the store.
        is_served: bool,
    },
    /// It has the store.
    Serving {
        /// What else is asked.
        agent: Arc<Agent>,
        /// Whether writing hosts.toml has been tried, with whatever outcome: one that can't be written is told elsewhere,
        /// and would be no better in another process.
        is_ready: watch::Receiver<bool>,
    },
}

impl Standing {
    /// Whether this process may be counted upon.
    ///
    /// One that waits is *ready* as long as the one before it serves. Kubernetes' `maxSurge` ends the old Pod only once the
    /// new one is ready, and the new one has the store only once the old one has ended: were it not ready until it has the
    /// store, both would wait for ever. And it has earned it: its configuration holds, its templates and certificates can
    /// be read, so that nothing is left to fail when it takes over.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), &'static str> {
        match self {
            Self::Starting => Err("it is starting"),
            Self::Waiting { is_served: true } => Ok(()),
            Self::Waiting { is_served: false } => Err("another process holds the cache, and nobody serves containerd"),
            Self::Serving { is_ready, .. } if *is_ready.borrow() => Ok(()),
            Self::Serving { .. } => Err("hosts.toml is not written yet"),
        }
    }

    /// The agent, once it has the store.
    pub(super) fn agent(&self) -> Option<Arc<Agent>> {
        match self {
            Self::Serving { agent, .. } => Some(Arc::clone(agent)),
            Self::Starting | Self::Waiting { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_ready_while_containerd_is_served() {
        assert!(Standing::Starting.ready().is_err());
        assert!(Standing::Waiting { is_served: true }.ready().is_ok());
        assert!(Standing::Waiting { is_served: false }.ready().is_err());
    }
}
