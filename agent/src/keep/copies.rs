//! Copies: what runs here is made whole on other nodes, and what runs there on this one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Catalog, Why};
use crate::image::MediaType;
use crate::peers::{Peers, WantedCopies};

/// What runs here is told again so often, jittered: a third of the time for which it holds.
const TELL_EVERY: Duration = Duration::from_secs(300);
/// How often it is looked whether something else runs here or is wanted here, or somebody else may have to hold copies.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// What others want to be here, as the next catalog will have it.
#[derive(Debug, Clone, Default)]
pub(super) struct CopiesHere(Arc<Mutex<Vec<WantedCopies>>>);

impl CopiesHere {
    pub(super) fn all(&self) -> Vec<WantedCopies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, copies: Vec<WantedCopies>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *known != copies;
        *known = copies;
        is_news
    }
}

/// Tells others what runs here, where `copies` of each image are wanted, and takes in what they want to be here, until
/// `stop`.
pub(super) async fn follow(
    peers: Peers,
    copies: u32,
    catalog: watch::Receiver<Arc<Catalog>>,
    here: CopiesHere,
    news: Arc<Notify>,
    stop: CancellationToken,
) {
    let (mut ran, mut told) = (Vec::new(), BTreeMap::new());
    let mut tell_at = Instant::now();
    loop {
        let round = async {
            if here.set(peers.copies_here()) {
                news.notify_one();
            }
            let running = if copies > 1 { running(&catalog.borrow(), copies) } else { Vec::new() };
            let holders = peers.may_hold_copies(&running);
            let mut untold = holders.clone();
            let is_time = Instant::now() >= tell_at;
            if is_time {
                tell_at = Instant::now() + TELL_EVERY.mul_f64(rand::rng().random_range(0.8..1.2));
            } else {
                untold.retain(|node, images| told.get(node) != Some(images));
            }
            if is_time || running != ran || !untold.is_empty() {
                peers.want_copies(&running, untold).await;
            }
            (ran, told) = (running, holders);
            tokio::time::sleep(LOOK_EVERY).await;
        };
        if stop.run_until_cancelled(round).await.is_none() {
            return;
        }
    }
}

/// What runs here.
fn running(catalog: &Catalog, copies: u32) -> Vec<WantedCopies> {
    let running = catalog.images.iter().filter(|known| known.why == Why::InUse);
    let wanted = running.map(|known| {
        let root = known.parts.first().map(|part| part.media_type.clone());
        let media_type = root.unwrap_or_else(MediaType::octet_stream);
        WantedCopies { image: known.name.clone(), target: known.target, media_type, copies }
    });
    wanted.collect()
}
