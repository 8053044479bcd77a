use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest that is taken over from another node, in bytes.
const LONGEST: usize = 32;

/// Tells one pull from all others, in the logs of every node that takes part in it. A cheap clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Trace(Arc<str>);

impl Trace {
    /// One that nobody has.
    #[must_use]
    pub fn new() -> Self {
        Self(format!("{:016x}", rand::random::<u64>()).into())
    }

    /// As it is logged.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for Trace {
    type Err = InvalidTrace;

    /// Takes letters and digits, at most 32: a log line holds it as it is.
    fn from_str(text: &str) -> Result<Self, InvalidTrace> {
        let is_valid = (1..=LONGEST).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if is_valid { Ok(Self(text.into())) } else { Err(InvalidTrace) }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What isn't a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a trace: 1 to 32 letters and digits")]
pub struct InvalidTrace;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_over_is_safe_in_a_log() {
        let own = Trace::new();
        assert_eq!(own.as_str().parse(), Ok(own.clone()));
        assert_ne!(own, Trace::new());
        for bad in ["", "a b", "a\n", &"x".repeat(33)] {
            assert_eq!(bad.parse::<Trace>(), Err(InvalidTrace), "{bad:?}");
        }
    }
}
