//! What a registry's upstreams amount to when none gives what was asked for.

use std::sync::Arc;

use super::{Inner, Place};
use crate::config::OnDeleted;
use crate::upstream::{ErrorKind, Upstream, UpstreamError};

/// What a registry says of what it doesn't give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// There is no such thing.
    Gone,
    /// It isn't this caller's.
    Refused,
}

impl Inner {
    /// What the registry itself said, if it said anything. Where the configuration lists mirrors alone, all of them together
    /// speak for it: one that is silent may have it.
    pub(super) fn word(&self, place: &Place, said: &[Arc<UpstreamError>]) -> Option<Word> {
        if let Some(by_origin) = said.iter().find(|e| e.is_by_origin()) {
            return word_of(by_origin);
        }
        let has_origin = || self.upstreams.of(&place.registry).iter().any(|upstream| upstream.is_origin());
        if said.is_empty() || said.iter().any(|e| !e.is_answer()) || has_origin() {
            return None;
        }
        let is_gone = said.iter().all(|e| word_of(e) == Some(Word::Gone));
        Some(if is_gone { Word::Gone } else { Word::Refused })
    }

    /// Whether the registry left the question open: it gave no answer, or has what was asked for no more and that is not
    /// to end anything. A challenge is an answer: what comes of it is up to the caller.
    pub(super) fn is_unanswered(&self, place: &Place, said: &[Arc<UpstreamError>]) -> bool {
        match self.word(place, said) {
            Some(Word::Gone) => self.options.on_deleted == OnDeleted::Serve,
            Some(Word::Refused) => false,
            None if said.iter().any(|e| e.is_challenge()) => false,
            None => said.is_empty() || said.iter().any(|e| !e.is_answer()),
        }
    }

    /// The registry itself; where the configuration lists mirrors alone, the last of them.
    pub(super) fn origin(&self, place: &Place) -> Option<Arc<Upstream>> {
        let chain = self.upstreams.of(&place.registry);
        chain.iter().find(|upstream| upstream.is_origin()).or(chain.last()).cloned()
    }
}

/// Whether nobody else is to be asked: the registry itself says that there is no such thing, or one wants to know first who
/// asks.
pub(super) fn is_last_word(error: &UpstreamError) -> bool {
    error.is_challenge() || (error.is_by_origin() && word_of(error) == Some(Word::Gone))
}

/// Whether it is there, and not for this caller.
pub(super) fn is_refusal(error: &UpstreamError) -> bool {
    word_of(error) == Some(Word::Refused)
}

/// What one that was asked says; `None` for no answer.
fn word_of(error: &UpstreamError) -> Option<Word> {
    match error.kind() {
        ErrorKind::NotFound => Some(Word::Gone),
        ErrorKind::Unauthorized | ErrorKind::Denied => Some(Word::Refused),
        _ => None,
    }
}
