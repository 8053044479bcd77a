use std::fmt;
use std::sync::Arc;

use crate::upstream::{ErrorKind, UpstreamError};

/// Why there is nothing to give. Each carries what every source said, for the log and for the caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// An upstream answered, and doesn't have it.
    #[error("not found: {0}")]
    NotFound(Said),
    /// An upstream answered, and doesn't give it to us.
    #[error("not permitted: {0}")]
    Denied(Said),
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
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no upstream is configured, or all are still being asked");
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
