use std::sync::{Arc, Weak};

use http::Uri;
use http::uri::PathAndQuery;
use tokio::time::{Instant, sleep_until, timeout};

use super::breaker::SILENCE;
use super::exchange::Exchange;
use super::tasks::Tasks;

/// Starts the task that asks an upstream whether it is back. There is at most one for each.
#[derive(Debug)]
pub(super) struct Prober {
    pub(super) exchange: Weak<Exchange>,
    pub(super) tasks: Tasks,
}

impl Prober {
    /// The task ends when the upstream is well, when it is dropped, and with [`Tasks::close`].
    pub(super) fn launch(&self) {
        let exchange = Weak::clone(&self.exchange);
        self.tasks.spawn_at_home(watch(exchange));
    }
}

async fn watch(exchange: Weak<Exchange>) {
    loop {
        let Some(upstream) = exchange.upgrade() else { return };
        let Some((at, woken)) = upstream.record.next_probe() else { return };
        if at <= Instant::now() {
            let alive = probe(&upstream).await;
            tracing::debug!(upstream = %upstream.name, alive, "probed");
            upstream.record.probed(alive);
            continue;
        }
        // Not held while it waits: an upstream that nobody has any more is gone.
        drop(upstream);
        tokio::select! {
            () = sleep_until(at) => {}
            () = woken.notified() => {}
        }
    }
}

/// Whether anything answers within the time after which silence counts as a failure: the upstream itself, or the host
/// that it sent us to in vain.
async fn probe(upstream: &Arc<Exchange>) -> bool {
    let uri = match upstream.record.failed_at() {
        None => upstream.home.v2("").ok(),
        Some(host) => elsewhere(&host),
    };
    let Some(uri) = uri else { return true };
    matches!(timeout(SILENCE, upstream.knock(&uri)).await, Ok(Ok(status)) if !status.is_server_error())
}

fn elsewhere(host: &str) -> Option<Uri> {
    Uri::builder().scheme("https").authority(host).path_and_query(PathAndQuery::from_static("/")).build().ok()
}
