use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::named::Named;
use super::{ASK_AGAIN, AT_ONCE, Asked, MOST_ASKED, Prover};

/// What was answered is asked again after so long: well within the time for which it is remembered by default.
const EVERY: Duration = Duration::from_secs(24 * 3600);

impl Prover {
    /// Asks those registries as the agent itself for whom it speaks while they can't be asked: once for each repository of
    /// which there is an image here.
    pub(super) async fn ask_as_node(&self, named: &Named, asked: &mut Asked) {
        let pull = &self.fetcher.pull;
        let mut left = Vec::new();
        for (place, target) in &named.targets {
            if pull.counts_for_node(&place.registry) && !asked.as_node.contains_key(place) && left.len() < MOST_ASKED {
                left.push((place.clone(), *target));
            }
        }
        let asking = left.into_iter().map(|(place, target)| async move {
            let answer = pull.opens_to_node(&place, &target).await;
            (place, answer)
        });
        let answers: Vec<_> = stream::iter(asking).buffer_unordered(AT_ONCE).collect().await;
        for (place, answer) in answers {
            let again = answer.map_or(ASK_AGAIN, |_| EVERY);
            asked.as_node.insert(place, Instant::now() + again);
        }
    }
}
