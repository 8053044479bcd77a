//! What is simulated, and what came of it.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// A cluster, its upstream, and what its nodes pull.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    /// All chance comes from it.
    pub(super) seed: u64,
    /// How many nodes.
    pub(super) nodes: usize,
    /// The blobs of the image, in bytes each, pulled in this order.
    pub(super) blobs: Vec<u64>,
    /// How many a node pulls at a time.
    pub(super) at_once: usize,
    /// Each direction of each node's link, in bytes a second.
    pub(super) link: f64,
    /// That of upstream.
    pub(super) upstream_link: f64,
    /// From node to node, one way.
    pub(super) delay: Duration,
    /// How long what is small waits at each end of a link that is full, behind at least 64 KiB; zero: it doesn't.
    pub(super) queue: Duration,
    /// Of what waits there, so much is lost, and comes 200 ms later.
    pub(super) lost: f64,
    /// From a request to upstream to its first byte.
    pub(super) upstream_delay: Duration,
    /// What is forwarded at a time, in bytes.
    pub(super) piece: u64,
    /// When each node begins: within this time, at random.
    pub(super) begin_within: Duration,
    /// Nodes that have everything from the start.
    pub(super) whole: usize,
    /// How many zones the nodes stand in, one after the other.
    pub(super) zones: usize,
    /// How long after a node's end the others know.
    pub(super) noticed_after: Duration,
    /// And within which time after that, each of each other; zero: all at once.
    pub(super) noticed_within: Duration,
    /// What goes wrong.
    pub(super) faults: Vec<(When, Fault)>,
    /// When to give up.
    pub(super) at_most: Duration,
    /// Whether all invariants are looked after at each event.
    pub(super) checked: bool,
}

/// When something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum When {
    /// That long after the beginning.
    At(Duration),
    /// When the first node has this part of the first blob.
    First(f64),
}

/// Something that goes wrong. Nodes are by number; [`Fault::HOLDER`] is who holds a lease at that moment, or the first, and
/// [`Fault::OWNER`] the owner of the first blob.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// A node goes dark: nobody is told.
    Dark(usize),
    /// A node's process ends: its connections break.
    Killed(usize),
    /// A node's link gets this part of its rate, in both directions.
    Slow(usize, f64),
    /// The owner of the first blob goes dark.
    OwnerDark,
    /// The owner of the first blob answers that much later.
    OwnerSlow(Duration),
    /// The path from upstream to a node gets this part of the link's rate.
    SlowUpstream(usize, f64),
    /// Upstream answers nobody any more.
    UpstreamGone,
    /// Upstream answers again.
    UpstreamBack,
    /// The cluster falls into so many parts.
    Parted(usize),
    /// It is one again.
    Healed,
    /// A node gives up its pulls, and begins them again that much later.
    Leaves(usize, Duration),
    /// A node that wasn't there before comes, and is an owner when it is noticed.
    Comes(usize),
    /// The first node that has everything loses it, and tells nobody.
    Forgets,
}

impl Fault {
    /// In the place of a node's number: who holds a lease at that moment.
    pub(super) const HOLDER: usize = usize::MAX;
    /// In the place of a node's number: the owner of the first blob.
    pub(super) const OWNER: usize = usize::MAX - 1;
}

/// How one node's pull went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pull {
    /// When it began.
    pub(super) began: Duration,
    /// When all of it was there.
    pub(super) done: Option<Duration>,
    /// It was neither slow nor dead.
    pub(super) is_healthy: bool,
    /// The longest time without a byte.
    pub(super) longest_gap: Duration,
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// By node.
    pub(super) pulls: Vec<Pull>,
    /// What upstream sent, divided by what there is.
    pub(super) copies: f64,
    /// Requests to upstream.
    pub(super) upstream_requests: u64,
    /// Bytes divided by the link's rate: no node can be faster.
    pub(super) ideal: Duration,
    /// Small messages in all, and their bytes, about.
    pub(super) messages: u64,
    /// Bytes of small messages, about.
    pub(super) message_bytes: u64,
    /// Asks of owners.
    pub(super) asks: u64,
    /// Streams that were opened to peers.
    pub(super) streams: u64,
    /// Bytes of content that crossed from one zone to another.
    pub(super) crossed: u64,
    /// How long it took in all.
    pub(super) took: Duration,
    /// What upstream had to send: all there is for each part, and what was lost with who had it, divided by what there is.
    pub(super) needed: f64,
    /// The longest time for which a healthy node had no way to the bytes and asked nobody who lives, the longest that one
    /// waited for the cluster in all, and the most tries of others that failed one after the other while it did.
    pub(super) cut_off: Duration,
    pub(super) waited: Duration,
    pub(super) failures: u32,
    /// What shouldn't be, in words.
    pub(super) wrong: Vec<String>,
}

impl Outcome {
    /// When the last healthy node was done, since the first began, divided by the ideal. Infinite if one wasn't.
    #[must_use]
    pub(super) fn last_healthy(&self) -> f64 {
        let began = self.pulls.iter().map(|pull| pull.began).min().unwrap_or_default();
        let healthy = self.pulls.iter().filter(|pull| pull.is_healthy);
        let last = healthy.map(|pull| pull.done.map_or(f64::INFINITY, |done| (done - began).as_secs_f64()));
        last.fold(0.0, f64::max) / self.ideal.as_secs_f64()
    }

    /// Copies that didn't have to be.
    #[must_use]
    pub(super) const fn beside(&self) -> f64 {
        (self.copies - self.needed).max(0.0)
    }

    /// Small messages for each node and second.
    #[must_use]
    pub(super) fn messages_per_second(&self) -> f64 {
        self.messages as f64 / self.pulls.len() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Their bytes.
    #[must_use]
    pub(super) fn message_bytes_per_second(&self) -> f64 {
        self.message_bytes as f64 / self.pulls.len() as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

impl Cluster {
    /// So many nodes that pull one blob of 1 GiB at once, over links of 1 Gbit/s with half a millisecond between them.
    #[must_use]
    pub(super) fn herd(nodes: usize, seed: u64) -> Self {
        Self {
            seed,
            nodes,
            blobs: vec![1 << 30],
            at_once: 1,
            link: 125e6,
            upstream_link: 125e6,
            delay: Duration::from_micros(500),
            queue: Duration::ZERO,
            lost: 0.0,
            upstream_delay: Duration::from_millis(10),
            piece: 64 << 10,
            begin_within: Duration::from_millis(100),
            whole: 0,
            zones: 1,
            noticed_after: Duration::from_secs(3),
            noticed_within: Duration::ZERO,
            faults: Vec::new(),
            at_most: Duration::from_secs(300),
            checked: false,
        }
    }

    /// Eight nodes that pull 100 blobs of 512 KiB at once, three at a time, over links of 100 Mbit/s.
    #[must_use]
    pub(super) fn many_small(seed: u64) -> Self {
        Self {
            blobs: vec![512 << 10; 100],
            at_once: 3,
            link: 12.5e6,
            upstream_link: 12.5e6,
            begin_within: Duration::from_millis(20),
            ..Self::herd(8, seed)
        }
    }

    /// Eight nodes that pull an image of one large and 40 small blobs, all of them at once, over links of 100 Mbit/s that
    /// are full: what is small waits behind what is large, and takes as long as their queues are.
    #[must_use]
    pub(super) fn cold(seed: u64) -> Self {
        let small = std::iter::repeat_n(512 << 10, 40);
        Self {
            blobs: std::iter::once(44 << 20).chain(small).collect(),
            at_once: 41,
            link: 12.5e6,
            upstream_link: 12.5e6,
            delay: Duration::from_millis(40),
            upstream_delay: Duration::from_millis(80),
            begin_within: Duration::from_millis(100),
            ..Self::herd(8, seed)
        }
    }

    /// So many nodes that pull one blob of 12 MiB at once over links of 40 Mbit/s, behind whose queues small messages wait:
    /// of a node at a fifth of that, answers are late as long as bytes flow.
    #[must_use]
    pub(super) fn narrow(nodes: usize, seed: u64) -> Self {
        Self {
            blobs: vec![12 << 20],
            link: 5e6,
            upstream_link: 5e6,
            queue: Duration::from_millis(50),
            lost: 0.05,
            upstream_delay: Duration::from_millis(2),
            ..Self::herd(nodes, seed)
        }
    }

    /// Something small, with everything that can go wrong, by chance.
    #[must_use]
    pub(super) fn random(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let nodes = rng.random_range(2..=12);
        let blobs = (0..rng.random_range(1..=2)).map(|_| rng.random_range(1..=(24 << 20))).collect();
        let link = [12.5e6, 125e6][rng.random_range(0..2)];
        let mut faults = Vec::new();
        let mut victims: Vec<usize> = (0..nodes).collect();
        victims.shuffle(&mut rng);
        let when = |rng: &mut SmallRng| {
            if rng.random_bool(0.5) {
                When::First(rng.random_range(0.0..1.0))
            } else {
                When::At(Duration::from_millis(rng.random_range(0..4_000)))
            }
        };
        for _ in 0..rng.random_range(0..4) {
            let at = when(&mut rng);
            let victim = if rng.random_bool(0.3) { Fault::HOLDER } else { victims.pop().unwrap_or(0) };
            let part = rng.random_range(0.05..0.5);
            let fault = match rng.random_range(0..11) {
                0 | 1 => Fault::Dark(victim),
                2 => Fault::Killed(victim),
                3 | 4 => Fault::Slow(victim, part),
                5 => Fault::OwnerDark,
                6 => Fault::OwnerSlow(Duration::from_millis(rng.random_range(10..3_000))),
                7 => Fault::SlowUpstream(victim, part),
                8 => Fault::Leaves(victim, Duration::from_millis(rng.random_range(0..2_000))),
                9 => {
                    let lasts = Duration::from_millis(rng.random_range(100..8_000));
                    let began = Duration::from_millis(rng.random_range(0..3_000));
                    faults.push((When::At(began + lasts), Fault::Healed));
                    faults.push((When::At(began), Fault::Parted(rng.random_range(2..4))));
                    continue;
                }
                _ => {
                    let lasts = Duration::from_millis(rng.random_range(100..5_000));
                    let began = Duration::from_millis(rng.random_range(0..3_000));
                    faults.push((When::At(began), Fault::UpstreamGone));
                    faults.push((When::At(began + lasts), Fault::UpstreamBack));
                    continue;
                }
            };
            faults.push((at, fault));
        }
        let mut cluster = Self {
            seed,
            nodes,
            blobs,
            at_once: 2,
            link,
            upstream_link: link * rng.random_range(0.2..2.0),
            delay: Duration::from_micros(rng.random_range(50..20_000)),
            queue: if seed % 4 == 3 { Duration::from_millis(50) } else { Duration::ZERO },
            lost: 0.05,
            upstream_delay: Duration::from_millis(rng.random_range(1..300)),
            piece: 256 << 10,
            begin_within: Duration::from_millis([1, 100, 3_000][rng.random_range(0..3)]),
            whole: usize::from(rng.random_bool(0.2)),
            zones: rng.random_range(1..=3),
            noticed_after: Duration::from_millis(rng.random_range(500..5_000)),
            noticed_within: Duration::ZERO,
            faults,
            at_most: Duration::from_secs(600),
            checked: true,
        };
        // Drawn last, so that a schedule that was hard once stays what it was.
        if !seed.is_multiple_of(3) {
            cluster.noticed_within = Duration::from_millis(rng.random_range(1..4_000));
        }
        if seed % 5 == 2 {
            let comes = When::At(Duration::from_millis(rng.random_range(0..3_000)));
            cluster.faults.push((comes, Fault::Comes(nodes - 1)));
        }
        if seed % 7 == 1 {
            let forgets = When::At(Duration::from_millis(rng.random_range(0..4_000)));
            cluster.faults.push((forgets, Fault::Forgets));
        }
        cluster
    }
}
