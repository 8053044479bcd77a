use std::time::Duration;

/// What one proof came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    /// containerd came to us, and the pull succeeded.
    Used,
    /// containerd came to us, but its pull failed afterwards: a full disk, a snapshotter that doesn't work.
    Failing {
        /// What containerd said.
        pull_error: String,
    },
    /// containerd pulled, or tried to, without coming to us.
    Unused {
        /// What containerd said.
        pull_error: String,
    },
    /// Nothing is known: containerd or its runtime interface couldn't be asked.
    Unknown {
        /// Why not.
        reason: String,
    },
}

/// One proof: what it came to, and when.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// What it came to.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// When it ended, in seconds since 1970.
    pub at: u64,
    /// How long it took.
    #[serde(rename = "took_seconds", with = "seconds")]
    pub took: Duration,
}

impl Verdict {
    /// The word that stands for it in metrics and logs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Failing { .. } => "failing",
            Self::Unused { .. } => "unused",
            Self::Unknown { .. } => "unknown",
        }
    }
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(span.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
