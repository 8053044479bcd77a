//! The slow look through everything that is held, for damage that nobody has met yet.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Bytes;
use crate::pull::Pace;
use crate::store::{Scrubbed, Store};

/// Between two rounds, and where there is nothing to look through.
const REST: Duration = Duration::from_secs(3600);

/// Looks through the store at so many bytes a second, over and over, until `stop`. `0`: not at all. What is damaged is set
/// aside, and fetched again if an image needs it.
pub(super) async fn scrub(store: Store, rate: Bytes, stop: CancellationToken) {
    if rate.0 == 0 {
        return;
    }
    let pace = Arc::new(Pace::new(rate));
    while let Some(damaged) = stop.run_until_cancelled(round(&store, &pace)).await {
        if damaged > 0 {
            info!(blobs = damaged, "looked through the cache: damaged blobs were set aside");
        }
        if stop.run_until_cancelled(tokio::time::sleep(REST)).await.is_none() {
            return;
        }
    }
}

async fn round(store: &Store, pace: &Pace) -> u64 {
    let (mut after, mut damaged) = (None, 0);
    while let Some(mut scrub) = store.scrub_next(after.as_ref()).await {
        after = Some(*scrub.digest());
        loop {
            match scrub.step().await {
                Scrubbed::Read(bytes) => pace.take(bytes).await,
                Scrubbed::Damaged => {
                    warn!(digest = %scrub.digest(), "a blob was damaged on the disk");
                    damaged += 1;
                    break;
                }
                Scrubbed::Sound | Scrubbed::Unknown => break,
            }
        }
        // One that has no checksums yet was hashed whole, in one step.
        pace.take(0).await;
    }
    damaged
}
