//! Waiting until every node is done.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::wire::resolve;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// How long it has to look done before it is believed: names are answered from caches, and Pods come one after the other.
const STEADY: Duration = Duration::from_secs(5);

/// The addresses behind a headless Service that lists all Pods, and behind one that lists those that are ready.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Nodes {
    all: BTreeSet<IpAddr>,
    ready: BTreeSet<IpAddr>,
}

impl Nodes {
    /// Looks for `NAME-all` and `NAME` until both have the same addresses, for `within` at most. What was seen last.
    pub(super) async fn wait(name: &str, within: Duration) -> Self {
        let until = Instant::now() + within;
        let mut since = None;
        let mut seen = Self::default();
        while Instant::now() < until {
            let now = Self { all: addresses(&format!("{name}-all")).await, ready: addresses(name).await };
            if now != seen {
                println!("{now}");
                seen = now;
                since = None;
            }
            let begun = *since.get_or_insert_with(Instant::now);
            if seen.are_done() && begun.elapsed() >= STEADY {
                break;
            }
            sleep(EVERY).await;
        }
        seen
    }

    /// Whether there are any, and all are ready.
    pub(super) fn are_done(&self) -> bool {
        !self.all.is_empty() && self.all == self.ready
    }

    /// Those that aren't ready.
    pub(super) fn left(&self) -> impl Iterator<Item = &IpAddr> {
        self.all.difference(&self.ready)
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} nodes are clean", self.ready.intersection(&self.all).count(), self.all.len())
    }
}

/// None where the name has none, or nobody answers.
async fn addresses(name: &str) -> BTreeSet<IpAddr> {
    let found = resolve(name, 0, None).await.unwrap_or_default();
    found.into_iter().map(|address| address.ip()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn done_is_when_all_are() {
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let mut nodes = Nodes::default();
        assert!(!nodes.are_done(), "none is not all");
        nodes.all = [ip(1), ip(2)].into();
        nodes.ready = [ip(1)].into();
        assert!(!nodes.are_done());
        assert_eq!(nodes.left().collect::<Vec<_>>(), [&ip(2)]);
        assert_eq!(nodes.to_string(), "1 of 2 nodes are clean");
        nodes.ready.insert(ip(2));
        assert!(nodes.are_done());
    }
}
