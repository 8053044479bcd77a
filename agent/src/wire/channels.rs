use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use super::connect::Connector;
use super::metrics::{Direction, Open};
use super::{Identity, WireMetrics};
use crate::image::NodeId;

/// A connection that nobody has asked for in this time is closed; calls under way on it end first.
const IDLE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// More than a node talks to within a minute. Of more, the one that was asked for longest ago goes.
const MAX_OPEN: usize = 1024;

/// A peer that answers no ping for so long, while something is under way, is gone.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The receiver decides how much comes at once: with frames of this size a stream is twice as fast as with HTTP/2's
/// own 16 KiB.
pub(super) const FRAME: u32 = 256 << 10;
/// What a stream may have under way: 10 Gbit/s at 1.6 ms. With twice as much it was no faster, and often slower: what is
/// received leaves the processor's cache before it is read.
const STREAM_WINDOW: u32 = 2 << 20;
/// What all streams of a connection may have, which bounds what a peer can have this node hold. A sender gives it to its
/// streams in the order in which they ask, and to each for all that it has at hand, a message at most: there is room for
/// dozens of the longest.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Where streams are held to a rate, each waits for its turn most of the time, with its window full. So many of them leave
/// room for another, which would seem silent otherwise; a peer gives no more at a time.
const LIMITED_STREAMS: u32 = 256;
/// The time in which a stream's window comes at that rate, as a part of a second: a peer's signs of life lie behind it.
const LIMITED_PART: u64 = 8;

/// What a connection is for: small calls must not wait behind streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Calls of at most some kilobytes.
    Small,
    /// Streams of content.
    Bulk,
    /// Streams of content, all of which take so many bytes a second at most.
    Limited(u64),
}

/// Connections to peers, made when they are first needed.
#[derive(Debug)]
pub struct Channels {
    identity: Arc<Identity>,
    metrics: WireMetrics,
    tasks: TaskTracker,
    open: Mutex<HashMap<Key, Kept>>,
}

type Key = (NodeId, SocketAddr, Purpose);

#[derive(Debug)]
struct Kept {
    channel: Channel,
    /// With which of the identity's sets it connects.
    generation: u64,
    asked_for: Instant,
    _open: Open,
}

impl Channels {
    /// None yet.
    #[must_use]
    pub fn new(identity: Arc<Identity>, metrics: WireMetrics) -> Arc<Self> {
        metrics.certificate_ends.set(identity.ends());
        Arc::new(Self { identity, metrics, tasks: TaskTracker::new(), open: Mutex::default() })
    }

    /// The connection to a node at an address. Needs a runtime. It is made by the first call, which fails when that
    /// takes longer than a second, or another node is found there; so does the next one, after another attempt.
    ///
    /// Ask for it anew for each call: one that is held is neither closed when it is idle, nor replaced when certificates
    /// change.
    #[must_use]
    pub fn to(&self, node: NodeId, address: SocketAddr, purpose: Purpose) -> Channel {
        let (key, now, generation) = ((node, address, purpose), Instant::now(), self.identity.generation());
        let mut open = self.lock();
        if let Some(kept) = open.get_mut(&key)
            && kept.generation == generation
        {
            kept.asked_for = now;
            return kept.channel.clone();
        }
        if open.len() >= MAX_OPEN
            && let Some(oldest) = open.iter().min_by_key(|(_, kept)| kept.asked_for).map(|(key, _)| *key)
        {
            open.remove(&oldest);
        }
        let channel = self.make(node, address, purpose);
        let kept =
            Kept { channel: channel.clone(), generation, asked_for: now, _open: self.metrics.open(Direction::Out) };
        open.insert(key, kept);
        channel
    }

    /// Closes what nobody has asked for in a minute, until `stop`; then all of it, and waits until calls under way have
    /// ended.
    pub async fn close_idle(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            self.sweep(Instant::now());
        }
        self.lock().clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(super) fn sweep(&self, now: Instant) {
        let generation = self.identity.generation();
        self.lock().retain(|_, kept| kept.generation == generation && now - kept.asked_for < IDLE);
        self.metrics.certificate_ends.set(self.identity.ends());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kept>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, node: NodeId, address: SocketAddr, purpose: Purpose) -> Channel {
        // The authority of requests; who is there is checked by certificate. TLS is the connector's.
        let endpoint = Endpoint::from_static("http://larder-peer").executor(Owned(self.tasks.clone()));
        let endpoint = match purpose {
            Purpose::Small => endpoint,
            Purpose::Bulk => endpoint
                .max_frame_size(FRAME)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW),
            Purpose::Limited(rate) => {
                let window = u32::try_from(rate / LIMITED_PART).unwrap_or(u32::MAX).clamp(FRAME, STREAM_WINDOW);
                endpoint
                    .max_frame_size(FRAME)
                    .initial_stream_window_size(window)
                    .initial_connection_window_size(window * LIMITED_STREAMS)
            }
        };
        let endpoint = endpoint.http2_keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_TIMEOUT);
        let (identity, metrics) = (Arc::clone(&self.identity), self.metrics.clone());
        Channel::new(Connector { identity, node, address, metrics }, endpoint)
    }
}

/// Runs what a connection needs in tasks that somebody waits for.
#[derive(Debug, Clone)]
pub(super) struct Owned(pub(super) TaskTracker);

impl<F> Executor<F> for Owned
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
