//! Asking the sources for a beginning.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::Wanted;
use super::direct::Opened;
use super::sources::Sources;
use crate::upstream::{Part, Upstream, UpstreamError};

/// An upstream that hasn't begun to answer by then is asked on, while the next one is asked besides it.
const SLOW: Duration = Duration::from_millis(1500);

/// The first answer to a request for `part` among the sources of this round, and whose it is. They are asked one after
/// the other; besides one that is slow, the next. `None` when the round has none, or when one wants to know who asks: the
/// caller, to whom nothing has gone out yet, may still show that.
pub(super) async fn first_to_answer(
    sources: &mut Sources,
    wanted: &Wanted,
    part: Part,
) -> Option<(Arc<Upstream>, Opened)> {
    let mut asked = FuturesUnordered::new();
    // Whose they are, and since when.
    let mut silent: Vec<(Arc<Upstream>, Instant)> = Vec::new();
    loop {
        let next = match silent.last() {
            None => sources.next_of_round(),
            Some((_, began)) if began.elapsed() >= SLOW => sources.next_beside(),
            Some(_) => None,
        };
        if let Some(next) = next {
            sources.leave(&next);
            silent.push((Arc::clone(&next), Instant::now()));
            asked.push(open(next, wanted, part));
        }
        let slow_at = silent.last()?.1 + SLOW;
        tokio::select! {
            answered = asked.next() => {
                let (source, answer) = answered?;
                silent.retain(|(other, _)| !Arc::ptr_eq(other, &source));
                match answer.and_then(|opened| sources.hold_to_manifest(&source, opened)) {
                    Ok(opened) => {
                        // First the requests: where they were given up is known then.
                        drop(asked);
                        for (loser, began) in silent.iter().filter(|(_, began)| began.elapsed() >= SLOW) {
                            loser.lost_race(*began);
                        }
                        sources.settle(&source);
                        sources.opened(&opened);
                        return Some((source, opened));
                    }
                    Err(e) => {
                        let is_challenge = e.is_challenge();
                        sources.failed(&source, e);
                        if is_challenge {
                            return None;
                        }
                    }
                }
            }
            () = sleep_until(slow_at), if Instant::now() < slow_at => {}
        }
    }
}

async fn open(source: Arc<Upstream>, wanted: &Wanted, part: Part) -> (Arc<Upstream>, Result<Opened, UpstreamError>) {
    let answer = Opened::open(&source, wanted, part).await;
    (source, answer)
}
