use std::sync::atomic::{AtomicU64, Ordering};

use time::Duration as Minutes;
use tokio::task::JoinSet;

use super::*;

/// Asks without a pause, as long as it is kept; every call must succeed.
struct Load {
    asked: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Load {
    fn between(a: &Arc<Node>, b: &Arc<Node>) -> Self {
        let (asked, mut tasks) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
        for (from, to) in [(a, b), (b, a), (a, b), (b, a)] {
            let (from, to, asked) = (Arc::clone(from), Arc::clone(to), Arc::clone(&asked));
            tasks.spawn(async move {
                loop {
                    from.ask(&to).await.unwrap();
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { asked, tasks }
    }

    /// Some more calls have been answered, and none has failed.
    async fn goes_on(&mut self) {
        let until = self.asked.load(Ordering::Relaxed) + 200;
        eventually(|| self.asked.load(Ordering::Relaxed) >= until, "calls under way").await;
        assert!(self.tasks.try_join_next().is_none(), "a call has failed");
    }
}

fn issuer(node: &Node) -> String {
    node.identity.shows().0
}

/// Nodes that keep files of their own, as they are on different machines, and get new ones at different times.
struct Fleet {
    cluster: Cluster,
    a: Arc<Node>,
    b: Arc<Node>,
}

impl Fleet {
    fn start() -> Self {
        let cluster = Cluster::new();
        let ca = cluster.ca();
        let node = |name: &str| {
            Self::give(&cluster, name, &ca);
            let mut config = cluster.config();
            config.ca = Some(cluster.path(&format!("{name}.pem")));
            config.key = Some(cluster.path(&format!("{name}.key")));
            Arc::new(Node::start(Identity::open(&config, &cluster.path(name)).unwrap()))
        };
        let (a, b) = (node("a"), node("b"));
        Self { cluster, a, b }
    }

    fn give(cluster: &Cluster, name: &str, ca: &ClusterCa) {
        replace(&cluster.path(&format!("{name}.pem")), ca.certificates());
        replace(&cluster.path(&format!("{name}.key")), ca.keys());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_authority_comes_without_a_gap() {
    let fleet = Fleet::start();
    let (a, b) = (&fleet.a, &fleet.b);
    let old = issuer(a);
    let mut load = Load::between(a, b);
    let now = OffsetDateTime::now_utc();

    // One node has it, and the other doesn't know it yet.
    let both = fleet.cluster.ca().rotated_at(now - Minutes::minutes(50)).unwrap();
    let generation = a.identity.generation();
    Fleet::give(&fleet.cluster, "a", &both);
    eventually(|| a.identity.generation() > generation, "the first node's new files").await;
    assert_eq!(issuer(a), old, "nobody else would know it");
    load.goes_on().await;
    Fleet::give(&fleet.cluster, "b", &both);
    eventually(|| b.identity.generation() > 0, "the second node's new files").await;
    load.goes_on().await;

    // An hour after it was made, first one node turns to it, then the other.
    let key = a.identity.cluster_key(b"x");
    a.identity.look(now + Minutes::minutes(11));
    assert_ne!(issuer(a), old);
    assert_ne!(a.identity.cluster_key(b"x"), key);
    assert_eq!(a.identity.cluster_keys(b"x")[1], key);
    assert_eq!(b.identity.cluster_keys(b"x")[1], a.identity.cluster_key(b"x"), "it opens what is sealed with it");
    load.goes_on().await;
    b.identity.look(now + Minutes::minutes(11));
    assert_eq!(issuer(b), issuer(a));
    load.goes_on().await;
    drop(load);
    assert_eq!(a.metrics.refusals.count(Reason::Authority) + b.metrics.refusals.count(Reason::Authority), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_certificates_change_half_by_half() {
    let cluster = Cluster::new();
    let a = Arc::new(Node::start(cluster.given("a", |_| {})));
    let b = Arc::new(Node::start(cluster.given("b", |_| {})));
    let mut load = Load::between(&a, &b);
    for _ in 0..2 {
        let (certificate, key) = leaf(&cluster.ca(), |_| {});
        let before = (a.identity.generation(), a.identity.shows().1);
        replace(&cluster.path("a.pem"), &certificate);
        // The half is looked at, and left.
        a.identity.look(OffsetDateTime::now_utc());
        assert_eq!((a.identity.generation(), a.identity.shows().1.clone()), before);
        load.goes_on().await;
        replace(&cluster.path("a.key"), &key);
        eventually(|| a.identity.generation() > before.0, "the whole pair").await;
        assert_ne!(a.identity.shows().1, before.1);
        load.goes_on().await;
    }
}

#[tokio::test]
async fn who_is_trusted_no_longer_is_cut_off() {
    let fleet = Fleet::start();
    let held = fleet.a.channels.to(fleet.b.identity.node(), fleet.b.address, Purpose::Small);
    assert!(ask(held.clone()).await.is_ok());
    Fleet::give(&fleet.cluster, "b", &ClusterCa::make().unwrap());
    eventually(|| fleet.b.identity.generation() > 0, "the new files").await;
    // The connection ends, and no other is made.
    eventually(|| fleet.b.metrics.connections(Direction::In) == 0, "the end of the connection").await;
    assert!(ask(held).await.is_err());
    fleet.a.refused(Reason::Authority, 1).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_of_its_life() {
    let cluster = Cluster::new();
    let node = cluster.node("a");
    let now = OffsetDateTime::now_utc();
    let first = node.identity.shows();
    node.identity.look(now + Minutes::hours(11));
    assert_eq!(node.identity.shows(), first);
    node.identity.look(now + Minutes::hours(12) + Minutes::minutes(1));
    assert_ne!(node.identity.shows(), first);
    assert!(node.identity.ends() > (now + Minutes::hours(36)).unix_timestamp());
    // A clock that was set back: what was made in the future isn't valid yet.
    node.identity.look(now);
    assert!(node.identity.ends() < (now + Minutes::hours(36)).unix_timestamp());
}

#[tokio::test]
async fn files_that_are_no_use_are_left_until_they_are() {
    let cluster = Cluster::new();
    let node = cluster.identity("a");
    let (good, first) = (cluster.ca(), node.shows());
    for (name, wrong) in [("ca.pem", ""), ("ca.pem", "nonsense"), ("ca.key", ""), ("ca.key", good.certificates())] {
        replace(&cluster.path(name), wrong);
        node.look(OffsetDateTime::now_utc());
        assert_eq!(node.shows(), first, "{name}: {wrong}");
        let error = Identity::open(&cluster.config(), &cluster.path("b")).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        cluster.write(&good);
    }
    std::fs::remove_file(cluster.path("ca.key")).unwrap();
    node.look(OffsetDateTime::now_utc());
    assert_eq!(node.shows(), first);
    replace(&cluster.path("ca.key"), good.keys());
    node.look(OffsetDateTime::now_utc());
    assert_ne!(node.shows(), first, "the whole set is read again");
}
