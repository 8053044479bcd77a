//! Waiting for something to become true, never for time to pass.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Asks `probe` again until it answers, and fails, naming `what`, when it hasn't within `limit`.
pub async fn until<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        // A probe that hangs counts as one that has no answer.
        match tokio::time::timeout_at(deadline, probe()).await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => bail!("waited {limit:?} in vain: {what}"),
        }
    }
}
