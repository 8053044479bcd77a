use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::{Digest, ImageName};

/// How it is with all images that are watched. A value: who watches it gets a new one when it changes.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Ordered by name.
    pub images: Vec<Arc<ImageHealth>>,
}

/// How it is with one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHealth {
    /// Its name in full.
    pub name: ImageName,
    /// What runs under that name here.
    pub target: Digest,
    /// What each upstream said last, in the order in which they are asked; one at the least.
    pub checks: Vec<Check>,
    /// What that means.
    pub verdict: Verdict,
}

/// What one upstream said of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The upstream's URL.
    pub upstream: String,
    /// What it came to.
    pub status: Status,
    /// When that was found; `None` before the first time.
    pub at: Option<Timestamp>,
    /// When the upstream last had it.
    pub available_at: Option<Timestamp>,
    /// What the name means there, where it said so.
    pub digest: Option<Digest>,
    /// More for people: an error's text.
    pub remark: Option<String>,
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Status {
    /// Not checked yet.
    Scheduled,
    /// The upstream has it.
    Available,
    /// The upstream says that it has no such image.
    NotFound,
    /// The upstream doesn't take the agent's own credentials, or gives this image to nobody who has them.
    InvalidAuth,
    /// The image is private, and the agent has no credentials of its own. No alarm: pulls that succeed are evidence.
    NoCredentials,
    /// The upstream's quota is used up.
    QuotaExceeded,
    /// The upstream doesn't answer, or it wants credentials and the helper that has them doesn't.
    Unreachable,
}

/// What would happen if the registry died now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Every blob of it for the platforms in use is held in the cluster, and its next pull here would be permitted.
    pub protected: bool,
    /// How many nodes have all of it.
    pub copies: u32,
    /// The tag now means another digest than the one that runs.
    pub drifted: bool,
    /// No upstream has it, and the cluster hasn't either.
    pub lost: bool,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Scheduled,
        Self::Available,
        Self::NotFound,
        Self::InvalidAuth,
        Self::NoCredentials,
        Self::QuotaExceeded,
        Self::Unreachable,
    ];

    /// The name, as it stands in metrics and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "Scheduled",
            Self::Available => "Available",
            Self::NotFound => "NotFound",
            Self::InvalidAuth => "InvalidAuth",
            Self::NoCredentials => "NoCredentials",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::Unreachable => "Unreachable",
        }
    }
}

impl ImageHealth {
    /// The status of the image as a whole: the best that any upstream said.
    #[must_use]
    pub fn status(&self) -> Status {
        const BEST_FIRST: [Status; 7] = [
            Status::Available,
            Status::NoCredentials,
            Status::QuotaExceeded,
            Status::Unreachable,
            Status::InvalidAuth,
            Status::NotFound,
            Status::Scheduled,
        ];
        let said = |status: &Status| self.checks.iter().any(|check| check.status == *status);
        BEST_FIRST.into_iter().find(said).unwrap_or(Status::Scheduled)
    }
}
