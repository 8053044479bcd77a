//! The slow look through everything that is held, for damage that nobody has met yet.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Bytes;
use crate::pull::Pace;
use crate::store::{CHUNK, Scrubbed, Store};

/// Between two rounds, and where there is nothing to look through.
const REST: Duration = Duration::from_secs(3600);
/// To look one up and to open it is paid for like so many bytes: small ones come by the hundred thousand.
pub(super) const EACH: u64 = 64 << 10;

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

/// Looks through everything once; how many blobs were damaged.
pub(super) async fn round(store: &Store, pace: &Pace) -> u64 {
    let (mut after, mut damaged) = (None, 0);
    while let Some(mut scrub) = store.scrub_next(after.as_ref()).await {
        after = Some(*scrub.digest());
        pace.take(EACH).await;
        let mut read = 0;
        let mut unpaid = loop {
            match scrub.step().await {
                Scrubbed::Read(bytes) => {
                    read += bytes;
                    pace.take(bytes).await;
                }
                Scrubbed::Damaged => {
                    warn!(digest = %scrub.digest(), "a blob was damaged on the disk");
                    damaged += 1;
                    break scrub.size().saturating_sub(read);
                }
                Scrubbed::Sound => break scrub.size().saturating_sub(read),
                Scrubbed::Unknown => break 0,
            }
        };
        // One that had no checksums yet was hashed whole, in one step.
        while unpaid > 0 {
            let piece = unpaid.min(CHUNK);
            pace.take(piece).await;
            unpaid -= piece;
        }
    }
    damaged
}
