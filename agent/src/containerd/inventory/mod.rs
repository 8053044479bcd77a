//! What containerd has and runs: images, who uses them, and the blobs that it holds.
//!
//! One task listens to containerd's events, and asks anew for what they say has changed. Events are lost while there is no
//! connection, and some changes have none; so there is a full listing after every connect and every few minutes. While
//! containerd can't be asked, what was known last stands.

mod agenda;
mod follow;
mod known;
mod listing;
mod metrics;
mod words;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::metrics::Metrics;
pub use self::words::{ImageUser, Inventory, RuntimeImage, Stray};
use super::client::Client;

/// The inventory and its changes, followed by a task until `stop`. `None` until containerd first answered; after that a new
/// value whenever something changed, and none when nothing did. Changes within a moment come as one.
///
/// Names that begin with the node's own `mirror` are told as what they mean: see
/// [`ImageName::behind`](crate::image::ImageName::behind).
#[must_use]
pub fn watch(
    client: Arc<Client>,
    mirror: SocketAddr,
    metrics: Metrics,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> channel::Receiver<Option<Arc<Inventory>>> {
    let (told, inventories) = channel::channel(None);
    tasks.spawn(async move { stop.run_until_cancelled(follow::follow(&client, mirror, &metrics, &told)).await });
    inventories
}
