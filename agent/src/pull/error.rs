use std::fmt;
use std::sync::Arc;

use crate::peers::Failed;
use crate::upstream::{ErrorKind, Grant, UpstreamError};

/// Why there is nothing to give. Each carries what every source said, for the log and for the caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// An upstream answered, and doesn't have it.
    #[error("not found: {0}")]
    NotFound(Said),
    /// An upstream answered, and doesn't give it to us.
    #[error("not permitted: {0}")]
    Denied(Said),
    /// The registry wants to know who asks, and the caller has shown nothing yet.
    #[error("authentication required: {0}")]
    Unauthenticated(Said),
    /// No upstream gave an answer.
    #[error("no upstream answered: {0}")]
    NoAnswer(Said),
    /// It would not have started in time.
    #[error("no answer within the reply deadline: {0}")]
    Late(Said),
    /// What containerd holds of this blob is known to be wrong; a part that continues it would only finish the wrong
    /// blob.
    #[error("the part before this range was wrong; start again from the first byte")]
    Poisoned,
    /// All its bytes came, more than once, and were wrong each time.
    #[error("the bytes that upstream sends don't have this digest")]
    WrongBytes,
    /// Nobody waits for it, and upstreams that may have it are near their limits: they were not asked.
    #[error("upstreams that may have it are near their limits, and are left to those who wait for them")]
    Spared,
    /// The agent is ending.
    #[error("the agent is shutting down")]
    Stopping,
}

/// What each source said, in the order of asking.
#[derive(Debug, Clone, Default)]
pub struct Said(Arc<[Arc<UpstreamError>]>);

impl PullError {
    /// The one error that a list of failures amounts to: an answer, where there was one, says more than silence.
    pub(super) fn from_all(errors: Vec<Arc<UpstreamError>>) -> Self {
        let denied = errors.iter().any(|e| matches!(e.kind(), ErrorKind::Unauthorized | ErrorKind::Denied));
        let not_found = errors.iter().any(|e| *e.kind() == ErrorKind::NotFound);
        let said = Said(errors.into());
        if not_found {
            Self::NotFound(said)
        } else if denied {
            Self::Denied(said)
        } else {
            Self::NoAnswer(said)
        }
    }

    /// The same, for who has shown that much: a challenge is for whoever can still answer it.
    pub(super) fn for_grant(self, grant: &Grant) -> Self {
        let is_challenge = |said: &Said| said.0.iter().any(|e| *e.kind() == ErrorKind::Unauthorized);
        match self {
            Self::NotFound(said) | Self::Denied(said) if *grant == Grant::None && is_challenge(&said) => {
                Self::Unauthenticated(said)
            }
            other => other,
        }
    }

    /// The same, as the cluster is told of it.
    pub(super) const fn as_failure(&self) -> Failed {
        match self {
            Self::NotFound(_) => Failed::Absent,
            Self::Denied(_) | Self::Unauthenticated(_) => Failed::Unauthorized,
            Self::NoAnswer(_) | Self::Late(_) | Self::Poisoned | Self::WrongBytes | Self::Spared | Self::Stopping => {
                Failed::Unreachable
            }
        }
    }

    /// What sources said, where that is what it is about.
    pub(super) fn said(&self) -> &[Arc<UpstreamError>] {
        match self {
            Self::NotFound(said)
            | Self::Denied(said)
            | Self::Unauthenticated(said)
            | Self::NoAnswer(said)
            | Self::Late(said) => &said.0,
            Self::Poisoned | Self::WrongBytes | Self::Spared | Self::Stopping => &[],
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no upstream was asked, or all are still being asked");
        }
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}
