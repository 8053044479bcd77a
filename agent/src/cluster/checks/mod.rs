//! Checks of images, made by one for all: how often a registry may still be asked, who checks which image, and what came
//! of it.
//!
//! A registry has an owner, the first of its bucket, which grants checks of it out of one budget for the whole cluster: a
//! [`Ledger`] of what was granted. An image has an owner too, whose [`Board`] says who checks it, what was found, and how
//! many nodes have all of it. Neither knows what an image is at a registry, nor asks one.

mod board;
mod ledger;

#[cfg(test)]
mod sim;

use std::time::Duration;

use sha2::{Digest as _, Sha256};

pub use board::{Board, Finding, Outcome, Standing, Watched};
pub use ledger::{Answer, Kept, Ledger};

use crate::cluster::Bucket;
use crate::config::Budget;
use crate::image::{ImageName, Registry};

/// How many checks of a registry may begin in which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// So many,
    pub most: u32,
    /// in any span of time of this length.
    pub window: Duration,
    /// How long after it was granted a check may begin, at the latest.
    pub life: Duration,
    /// How much later than that the registry may see it: no check takes longer.
    pub timeout: Duration,
}

impl Allowance {
    /// What a budget allows; `None` where it allows nothing.
    #[must_use]
    pub fn of(budget: &Budget) -> Option<Self> {
        let (most, window, timeout) = (budget.max_per_interval, budget.interval, budget.timeout);
        let life = (window / 10).clamp(Duration::from_secs(2), Duration::from_secs(10));
        (most > 0 && !window.is_zero()).then_some(Self { most, window, life, timeout })
    }

    /// How long a grant counts. Between it and its check some time passes, so that counting for the window alone would
    /// let two checks come closer together than their grants.
    fn span(&self) -> Duration {
        self.window + self.life + self.timeout
    }

    /// How far apart two nodes may learn of the same change of owners.
    fn skew(&self) -> Duration {
        (self.window / 4).min(Duration::from_secs(60))
    }
}

/// The bucket that a registry's budget falls into. The same on every node and in every version.
#[must_use]
pub fn bucket_of_registry(registry: &Registry) -> Bucket {
    bucket("registry", registry.as_str())
}

/// The bucket that an image's checks fall into. The same on every node and in every version.
#[must_use]
pub fn bucket_of_image(image: &ImageName) -> Bucket {
    bucket("image", &image.to_string())
}

fn bucket(kind: &str, name: &str) -> Bucket {
    Bucket::of_hash(&Sha256::new().chain_update(kind).chain_update([0]).chain_update(name).finalize().into())
}
