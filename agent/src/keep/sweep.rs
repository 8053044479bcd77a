use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::store::{Excess, Reason, Store};

/// Others fill the disk too, so the bounds are looked at without being told.
const INTERVAL: Duration = Duration::from_secs(10);
/// What was used so recently is likely to be in use still: a pull reads its blobs one after the other.
const SPARE: Duration = Duration::from_secs(10);
/// What arrived in part and rested so long goes before anything whole does.
const LEFTOVER_AGE: Duration = Duration::from_secs(600);
/// How many blobs are removed at a time; between two batches the bounds are looked at again.
const BATCH: usize = 256;

/// Holds the store within its bounds until `stop`.
pub async fn hold_bounds(store: Store, stop: CancellationToken) {
    let mut stuck = false;
    loop {
        let swept = stop.run_until_cancelled(sweep(&store)).await;
        let Some(swept) = swept else { return };
        // Said once, and not every ten seconds.
        if swept.left > 0 && !stuck {
            warn!(bytes = swept.left, "the cache is above its bounds, and nothing more of it can go");
        }
        stuck = swept.left > 0;
        let woken = async {
            tokio::select! {
                () = store.grown() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        };
        if stop.run_until_cancelled(woken).await.is_none() {
            return;
        }
    }
}

/// Brings the store within its bounds now; how many bytes and blobs went.
pub async fn collect(store: &Store) -> (u64, u64) {
    let swept = sweep(store).await;
    (swept.bytes, swept.blobs)
}

/// What a sweep did.
#[derive(Debug, Default)]
struct Swept {
    bytes: u64,
    blobs: u64,
    /// Bytes above the low mark that nothing could be found for.
    left: u64,
}

async fn sweep(store: &Store) -> Swept {
    let mut swept = Swept::default();
    let Some(usage) = store.usage().await else { return swept };
    let Some(Excess { bytes: goal, reason }) = store.bounds().excess(&usage) else { return swept };
    swept.bytes = store.drop_leftovers(LEFTOVER_AGE).await;
    let mut spare = SPARE;
    while swept.bytes < goal {
        let mut cold = store.coldest(BATCH, spare).await;
        if !spare.is_zero() {
            cold.retain(|digest| !store.is_open(digest));
        }
        let (bytes, blobs) = if cold.is_empty() { (0, 0) } else { store.evict(cold, goal - swept.bytes, reason).await };
        swept.bytes += bytes;
        swept.blobs += blobs;
        if blobs == 0 {
            // What is in use goes for our own bound only: a disk that others filled is not made better by it.
            if spare.is_zero() || reason == Reason::MaxDiskPercent {
                break;
            }
            spare = Duration::ZERO;
        }
    }
    swept.left = goal.saturating_sub(swept.bytes);
    if swept.blobs > 0 {
        info!(bytes = swept.bytes, blobs = swept.blobs, ?reason, "made room");
    }
    swept
}

#[cfg(test)]
mod tests;
