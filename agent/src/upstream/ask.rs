use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, sleep_until};

use super::breaker::{Rank, SILENCE};
use super::chains::Chain;
use super::error::UpstreamError;
use super::one::Upstream;

/// Asking the upstreams of a chain, one after the other or one against the other.
impl Chain {
    /// Those that are well in the configured order, then those whose breaker is open, then those at rest. All of them,
    /// always: the last resort is to ask one that is thought dead.
    #[must_use]
    pub fn in_order(&self) -> Vec<Arc<Upstream>> {
        self.ranked().into_iter().map(|(_, upstream)| upstream).collect()
    }

    /// The same without those that aren't to be asked what a tag means.
    #[must_use]
    pub fn for_tags(self) -> Self {
        if self.iter().all(|upstream| upstream.knows_tags()) {
            return self;
        }
        self.iter().filter(|upstream| upstream.knows_tags()).cloned().collect()
    }

    /// The same without those that what nobody waits for leaves alone: they rest, or are near their limits.
    #[must_use]
    pub fn for_background(self) -> Self {
        self.iter().filter(|upstream| !upstream.is_near_its_limit()).cloned().collect()
    }

    /// Asks in that order until one gives the content, or an error that `decides`. Goes on to the next at once when
    /// one fails; and besides the one that is asked when that is slow against its own history. Upstreams at rest are
    /// asked only when no other is left. The first answer ends all requests that are still under way; an upstream that
    /// said nothing until then is thought to be down.
    ///
    /// Cancel safe: dropping the future ends its requests, and blames nobody.
    ///
    /// # Errors
    /// What each upstream that was heard said, in that order; the one that decided, if one did, is the last. Empty for
    /// an empty chain.
    pub async fn first<T, F, Fut>(
        &self,
        decides: fn(&UpstreamError) -> bool,
        ask: F,
    ) -> Result<(Arc<Upstream>, T), Vec<Arc<UpstreamError>>>
    where
        F: Fn(Arc<Upstream>) -> Fut + Send,
        Fut: Future<Output = Result<T, UpstreamError>> + Send,
    {
        let mut left = self.ranked();
        let mut requests = FuturesUnordered::new();
        let mut racers: Vec<Racer> = Vec::new();
        let mut errors = Vec::new();
        let mut begins = true;
        loop {
            if begins && let Some((_, upstream)) = left.pop_front() {
                racers.push(Racer::new(&upstream));
                requests.push(answer(Arc::clone(&upstream), ask(upstream)));
            }
            let next = left.front().map(|(rank, _)| *rank);
            let Some(newest) = racers.last() else {
                // The last that was asked has failed.
                begins = next.is_some();
                if begins { continue } else { return Err(errors) }
            };
            let race_at = next.and_then(|next| newest.patience(next));
            tokio::select! {
                biased;
                Some((upstream, outcome)) = requests.next() => {
                    racers.retain(|racer| !Arc::ptr_eq(&racer.upstream, &upstream));
                    let error = match outcome {
                        Ok(answer) => {
                            settle(&racers);
                            return Ok((upstream, answer));
                        }
                        Err(error) => error,
                    };
                    let decided = decides(&error);
                    errors.push(Arc::new(error));
                    if decided {
                        settle(&racers);
                        return Err(errors);
                    }
                    begins = next == Some(Rank::Well);
                }
                () = sleep_until(race_at.unwrap_or(newest.began)), if race_at.is_some() => {
                    tracing::debug!(upstream = newest.upstream.name(), "slow: the next is asked too");
                    racers.iter_mut().for_each(|racer| racer.is_raced = true);
                    begins = true;
                }
            }
        }
    }

    /// All, each with its rank. Tells those that are down that they are wanted.
    fn ranked(&self) -> VecDeque<(Rank, Arc<Upstream>)> {
        let mut ranked: Vec<_> = self.iter().map(|upstream| (upstream.rank(), Arc::clone(upstream))).collect();
        // It keeps the configured order among equals.
        ranked.sort_by_key(|(rank, _)| *rank);
        for (_, upstream) in ranked.iter().filter(|(rank, _)| *rank != Rank::Well) {
            upstream.exchange.record.want();
        }
        ranked.into()
    }
}

/// An upstream that is asked.
struct Racer {
    upstream: Arc<Upstream>,
    began: Instant,
    /// Whether the next was asked because this one was slow.
    is_raced: bool,
}

impl Racer {
    fn new(upstream: &Arc<Upstream>) -> Self {
        Self { upstream: Arc::clone(upstream), began: Instant::now(), is_raced: false }
    }

    /// When an upstream of this rank is asked too, if this one has said nothing until then.
    fn patience(&self, next: Rank) -> Option<Instant> {
        match next {
            Rank::Well => Some(self.began + self.upstream.exchange.record.patience()),
            Rank::Down => Some(self.began + SILENCE),
            Rank::Resting => None,
        }
    }
}

async fn answer<T, E>(
    upstream: Arc<Upstream>,
    request: impl Future<Output = Result<T, E>>,
) -> (Arc<Upstream>, Result<T, E>) {
    let outcome = request.await;
    (upstream, outcome)
}

/// Another upstream has answered. Those that are held up by something else are no slower for it.
fn settle(racers: &[Racer]) {
    for racer in racers.iter().filter(|racer| racer.is_raced && !racer.upstream.is_held_up(racer.began)) {
        racer.upstream.exchange.record.lost_race(racer.began);
    }
}
