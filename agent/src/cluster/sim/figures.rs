//! The scenarios whose figures are published.

use std::time::Duration;

use super::plan::{Cluster, Fault, When};

/// A scenario with a name.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    /// What is simulated, in words.
    pub(super) name: &'static str,
    /// The same, in numbers.
    pub(super) cluster: Cluster,
}

impl Figure {
    /// So many nodes that pull 1 GiB at once over links of 1 Gbit/s: without fault, and with each fault by itself.
    #[must_use]
    pub(super) fn herd(nodes: usize, seed: u64) -> Vec<Self> {
        let cluster = Cluster::herd(nodes, seed);
        let middle = nodes / 2;
        let with =
            |name, when, fault| Self { name, cluster: Cluster { faults: vec![(when, fault)], ..cluster.clone() } };
        // As soon as there is a holder.
        let early = When::First(0.000_5);
        vec![
            Self { name: "without fault", cluster: cluster.clone() },
            with("one node at a fifth of its rate", When::At(Duration::ZERO), Fault::Slow(middle, 0.2)),
            with("the owner at a fifth of its rate", When::At(Duration::ZERO), Fault::Slow(Fault::OWNER, 0.2)),
            with("one node goes dark midway", When::First(0.5), Fault::Dark(middle)),
            with("the first holder at a fifth of its rate", early, Fault::Slow(Fault::HOLDER, 0.2)),
            with("the holder at a fifth of its rate midway", When::First(0.5), Fault::Slow(Fault::HOLDER, 0.2)),
            with("the holder goes dark midway", When::First(0.5), Fault::Dark(Fault::HOLDER)),
            with("the owner goes dark midway", When::First(0.5), Fault::OwnerDark),
            with("the owner is dark, and nobody knows", When::At(Duration::ZERO), Fault::OwnerDark),
            with("upstream is gone when one copy has left it", When::First(1.0), Fault::UpstreamGone),
            Self { name: "upstream's link at a fifth", cluster: Cluster { upstream_link: 25e6, ..cluster.clone() } },
            Self { name: "three zones", cluster: Cluster { zones: 3, ..cluster.clone() } },
            Self { name: "one has it", cluster: Cluster { whole: 1, ..cluster.clone() } },
        ]
    }

    /// One node at a fifth of its rate, wherever it may stand, where small messages wait behind what fills a link.
    #[must_use]
    pub(super) fn narrow(nodes: usize, seed: u64) -> Vec<Self> {
        let with = |name, when, node| {
            let faults = vec![(when, Fault::Slow(node, 0.2))];
            Self { name, cluster: Cluster { faults, ..Cluster::narrow(nodes, seed) } }
        };
        let start = When::At(Duration::ZERO);
        vec![
            with("in the middle", start, nodes / 2),
            with("the owner", start, Fault::OWNER),
            with("the first holder", When::First(0.000_5), Fault::HOLDER),
            with("the holder midway", When::First(0.5), Fault::HOLDER),
        ]
    }

    /// One node at a fifth of its rate, wherever it may stand, and an image of one large and 40 small blobs, all of them at
    /// once, where small messages wait behind what fills a link.
    #[must_use]
    pub(super) fn image(nodes: usize, seed: u64) -> Vec<Self> {
        let cluster = Cluster {
            nodes,
            queue: Duration::from_millis(50),
            lost: 0.05,
            delay: Duration::from_micros(500),
            upstream_delay: Duration::from_millis(2),
            ..Cluster::cold(seed)
        };
        let with = |name, when, node| {
            let faults = vec![(when, Fault::Slow(node, 0.2))];
            Self { name, cluster: Cluster { faults, ..cluster.clone() } }
        };
        let start = When::At(Duration::ZERO);
        vec![
            with("in the middle", start, nodes / 2),
            with("the owner", start, Fault::OWNER),
            with("the first holder", When::First(0.000_5), Fault::HOLDER),
        ]
    }

    /// A tenth of the nodes changes for others while they pull; the cluster falls in two, and heals.
    #[must_use]
    pub(super) fn unrest(nodes: usize, seed: u64) -> Vec<Self> {
        let cluster = Cluster::herd(nodes, seed);
        let churn = (0..nodes / 10).map(|at| {
            let when = When::At(Duration::from_millis(500 + 6_000 * at as u64 / (nodes / 10) as u64));
            (when, Fault::Leaves(at * 10, Duration::from_secs(1)))
        });
        let parted = vec![
            (When::At(Duration::from_secs(2)), Fault::Parted(2)),
            (When::At(Duration::from_secs(6)), Fault::Healed),
        ];
        vec![
            Self {
                name: "a tenth leaves and comes back",
                cluster: Cluster { faults: churn.collect(), ..cluster.clone() },
            },
            Self { name: "in two parts for four seconds", cluster: Cluster { faults: parted, ..cluster } },
        ]
    }

    /// Eight nodes at 100 Mbit/s that pull many small blobs, three at a time.
    #[must_use]
    pub(super) fn many_small(seed: u64) -> Vec<Self> {
        let cluster = Cluster::many_small(seed);
        vec![
            Self { name: "100 blobs of 512 KiB", cluster: cluster.clone() },
            Self { name: "the same, forwarded when whole", cluster: Cluster { piece: 512 << 10, ..cluster } },
        ]
    }
}
