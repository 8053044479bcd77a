use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::config::Bytes;
use crate::image::NodeId;

/// For so long a rate may be caught up with: timers are coarse, and come late on a busy node.
const CATCH_UP: Duration = Duration::from_millis(50);
/// With more peers than this, those who haven't moved lately are forgotten, which changes nothing for them.
const REMEMBERED: usize = 256;

/// Holds streams to a rate, in all and for each peer, in one direction.
///
/// A piece may be as large as it likes: it goes at once when the ones before it are paid for, and the next one waits
/// until it is. So a rate below a piece's size is held, and no burst's size caps a rate. Who comes first goes first.
#[derive(Debug)]
pub struct Limiter {
    total: Option<u64>,
    per_peer: Option<u64>,
    due: Mutex<Due>,
}

/// Until when what has gone out is paid for.
#[derive(Debug, Default)]
struct Due {
    total: Option<Instant>,
    peers: HashMap<NodeId, Instant>,
}

impl Limiter {
    /// Bytes a second. `None`: no limit, and no cost.
    #[must_use]
    pub fn new(total: Option<Bytes>, per_peer: Option<Bytes>) -> Self {
        let rate = |bytes: Bytes| bytes.0.max(1);
        Self { total: total.map(rate), per_peer: per_peer.map(rate), due: Mutex::default() }
    }

    /// Waits until a piece of so many bytes may go to (or has been earned by) this peer. Cancelled, it has still been
    /// paid for.
    pub async fn take(&self, node: NodeId, bytes: u64) {
        if let Some(start) = self.charge(node, bytes) {
            sleep_until(start).await;
        }
    }

    /// Pays for a piece of so many bytes; when it may go to this peer (or has been earned by it), if that isn't now.
    pub fn charge(&self, node: NodeId, bytes: u64) -> Option<Instant> {
        let now = Instant::now();
        Some(self.reserve(node, bytes, now)).filter(|start| *start > now)
    }

    /// Bytes a second that one peer may have at most. `None`: any number.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        [self.total, self.per_peer].into_iter().flatten().min()
    }

    /// When the piece may go.
    fn reserve(&self, node: NodeId, bytes: u64, now: Instant) -> Instant {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = now;
        if let Some(rate) = self.total {
            let (at, next) = pay(due.total, bytes, rate, now);
            due.total = Some(next);
            start = start.max(at);
        }
        if let Some(rate) = self.per_peer {
            if due.peers.len() > REMEMBERED {
                due.peers.retain(|_, next| *next + CATCH_UP > now);
            }
            let (at, next) = pay(due.peers.get(&node).copied(), bytes, rate, now);
            due.peers.insert(node, next);
            start = start.max(at);
        }
        start
    }
}

/// When a piece may go whose forerunners are paid for at `due`, and when it is paid for itself.
fn pay(due: Option<Instant>, bytes: u64, rate: u64, now: Instant) -> (Instant, Instant) {
    let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
    let start = due.map_or(now, |due| due.max(earliest));
    (start, start + Duration::from_secs_f64(bytes as f64 / rate as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 256 << 10;

    fn node(n: u8) -> NodeId {
        NodeId::new([n; 16])
    }

    /// Bytes a second of streams that take pieces for ten seconds, one after the other each.
    fn rates(limiter: &Limiter, streams: &[NodeId], piece: u64, began: Instant) -> Vec<f64> {
        let mut state: Vec<_> = streams.iter().map(|&node| (began, node, 0)).collect();
        let end = began + Duration::from_secs(10);
        loop {
            let (now, node, taken) = state.iter_mut().min_by_key(|(now, ..)| *now).unwrap();
            if *now >= end {
                break;
            }
            // A timer comes a little late.
            let start = limiter.reserve(*node, piece, *now);
            *now = if start > *now { start + Duration::from_millis(1) } else { *now };
            *taken += piece;
        }
        state.iter().map(|(.., taken)| *taken as f64 / 10.0).collect()
    }

    fn is_near(rate: f64, wanted: u64) -> bool {
        (rate / wanted as f64 - 1.0).abs() < 0.03
    }

    #[test]
    fn rates_hold_whatever_the_pieces() {
        for (wanted, piece) in [(10 << 20, PIECE), (1 << 30, PIECE), (1 << 30, 4 << 20), (100 << 20, 4 << 10)] {
            let limiter = Limiter::new(Some(Bytes(wanted)), None);
            let got = rates(&limiter, &[node(1)], piece, Instant::now())[0];
            assert!(is_near(got, wanted), "{got} of {wanted} in pieces of {piece}");
        }
        // Pieces larger than what may go in a second, of which the first is free.
        let limiter = Limiter::new(Some(Bytes(1 << 20)), None);
        let got = rates(&limiter, &[node(1)], 2 << 20, Instant::now())[0];
        assert!((1e6..1.3e6).contains(&got), "{got}");
    }

    #[test]
    fn streams_share_alike_and_a_peer_has_a_bound_of_its_own() {
        let total = || Some(Bytes(30 << 20));
        let rates = |limiter, streams: &[NodeId]| rates(&limiter, streams, PIECE, Instant::now());
        let got = rates(Limiter::new(total(), None), &[node(1), node(2)]);
        assert!(got.iter().all(|&rate| is_near(rate, 15 << 20)), "{got:?}");
        let got = rates(Limiter::new(total(), Some(Bytes(10 << 20))), &[node(1), node(2)]);
        assert!(got.iter().all(|&rate| is_near(rate, 10 << 20)), "{got:?}");
        // Two streams of one peer share its bound, and take nothing from another's.
        let got = rates(Limiter::new(total(), Some(Bytes(10 << 20))), &[node(1), node(1), node(2)]);
        assert!(is_near(got[0] + got[1], 10 << 20) && is_near(got[2], 10 << 20), "{got:?}");
    }

    #[test]
    fn rest_earns_no_burst() {
        let limiter = Limiter::new(Some(Bytes(10 << 20)), Some(Bytes(10 << 20)));
        let start = Instant::now();
        limiter.reserve(node(1), PIECE, start);
        let got = rates(&limiter, &[node(1)], PIECE, start + Duration::from_secs(60))[0];
        assert!(is_near(got, 10 << 20), "{got}");
    }

    #[tokio::test]
    async fn who_must_wait_waits() {
        let (unlimited, limited) = (Limiter::new(None, None), Limiter::new(None, Some(Bytes(1 << 20))));
        let began = Instant::now();
        unlimited.take(node(1), u64::MAX).await;
        limited.take(node(1), 100 << 10).await;
        assert!(began.elapsed() < Duration::from_millis(90));
        limited.take(node(1), 1).await;
        assert!(began.elapsed() >= Duration::from_millis(97));
    }

    #[test]
    fn many_peers_are_forgotten_again() {
        let limiter = Limiter::new(None, Some(Bytes(1 << 20)));
        let start = Instant::now();
        for n in 0..10_000_u128 {
            limiter.reserve(NodeId::new(n.to_be_bytes()), PIECE, start + Duration::from_millis(n as u64 * 100));
        }
        assert!(limiter.due.lock().unwrap().peers.len() <= REMEMBERED + 1);
    }
}
