//! Asking the sources for a beginning.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

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
    let mut is_slow = false;
    loop {
        if (asked.is_empty() || is_slow)
            && let Some(next) = sources.next_of_round()
        {
            sources.leave(&next);
            asked.push(open(next, wanted, part));
        }
        is_slow = false;
        tokio::select! {
            answered = asked.next() => {
                let (source, answer) = answered?;
                match answer.and_then(|opened| sources.hold_to_manifest(&source, opened)) {
                    Ok(opened) => {
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
            () = tokio::time::sleep(SLOW) => is_slow = true,
        }
    }
}

async fn open(source: Arc<Upstream>, wanted: &Wanted, part: Part) -> (Arc<Upstream>, Result<Opened, UpstreamError>) {
    let answer = Opened::open(&source, wanted, part).await;
    (source, answer)
}
