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
        if self.total.is_none() && self.per_peer.is_none() {
            return;
        }
        let now = Instant::now();
        let start = self.reserve(node, bytes, now);
        if start > now {
            sleep_until(start).await;
        }
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

    /// Bytes a second of one who takes pieces for ten seconds.
    async fn rate(limiter: &Limiter, node: NodeId, piece: u64) -> f64 {
        let began = Instant::now();
        let mut taken = 0;
        while began.elapsed() < Duration::from_secs(10) {
            limiter.take(node, piece).await;
            taken += piece;
        }
        taken as f64 / began.elapsed().as_secs_f64()
    }

    fn is_near(rate: f64, wanted: u64) -> bool {
        (rate / wanted as f64 - 1.0).abs() < 0.03
    }

    #[tokio::test(start_paused = true)]
    async fn rates_hold_whatever_the_pieces() {
        for (wanted, piece) in [(1 << 20, PIECE), (1 << 30, PIECE), (100 << 20, 4 << 10), (1 << 20, 1 << 20)] {
            let limiter = Limiter::new(Some(Bytes(wanted)), None);
            let got = rate(&limiter, node(1), piece).await;
            // The first piece of all is free.
            let most = wanted + piece / 10;
            assert!(is_near(got, wanted) || is_near(got, most), "{got} of {wanted} in pieces of {piece}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_share_alike_and_a_peer_has_a_bound_of_its_own() {
        let limiter = Limiter::new(Some(Bytes(30 << 20)), None);
        let (a, b) = tokio::join!(rate(&limiter, node(1), PIECE), rate(&limiter, node(2), PIECE));
        assert!(is_near(a, 15 << 20) && is_near(b, 15 << 20), "{a} {b}");

        let limiter = Limiter::new(Some(Bytes(30 << 20)), Some(Bytes(10 << 20)));
        let (a, b) = tokio::join!(rate(&limiter, node(1), PIECE), rate(&limiter, node(2), PIECE));
        assert!(is_near(a, 10 << 20) && is_near(b, 10 << 20), "{a} {b}");
    }

    #[tokio::test(start_paused = true)]
    async fn rest_earns_no_burst() {
        let limiter = Limiter::new(Some(Bytes(1 << 20)), Some(Bytes(1 << 20)));
        limiter.take(node(1), PIECE).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(is_near(rate(&limiter, node(1), PIECE).await, 1 << 20));
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
