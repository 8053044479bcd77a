use std::time::SystemTime;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::super::seal::{CLOCKS_APART, Sealer};
use super::*;

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn bind(identity: &Arc<Identity>) -> (Datagrams, WireMetrics, SocketAddr) {
    let metrics = WireMetrics::default();
    let datagrams = Datagrams::bind(local(), Arc::clone(identity), metrics.clone()).unwrap();
    let address = datagrams.local_addr().unwrap();
    (datagrams, metrics, address)
}

#[tokio::test]
async fn members_alone_are_heard() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (a, _, from) = bind(&ours.identity("a"));
    let (b, metrics, to) = bind(&ours.identity("b"));
    let (outsider, ..) = bind(&theirs.identity("x"));
    outsider.send(to, b"let me in").await.unwrap();
    let noise = UdpSocket::bind(local()).await.unwrap();
    for length in [0, 10, 48, 49, 1400, 3000] {
        noise.send_to(&vec![1; length], to).await.unwrap();
    }
    noise.send_to(&[2; 100], to).await.unwrap();
    a.send(to, &[7; Datagrams::MAX_PLAIN]).await.unwrap();
    a.send(to, b"").await.unwrap();
    let heard = timeout(Duration::from_secs(5), b.recv()).await.unwrap().unwrap();
    assert_eq!(heard, (from, vec![7; Datagrams::MAX_PLAIN]));
    assert_eq!(b.recv().await.unwrap().1, b"");
    assert_eq!(metrics.refusals.count(Reason::Key), 4, "the outsider's, and three that look like one of ours");
    assert_eq!(metrics.refusals.count(Reason::Short), 3);
    assert_eq!(metrics.refusals.count(Reason::Version), 1);
    assert!(a.send(to, &[0; Datagrams::MAX_PLAIN + 1]).await.is_err());
}

#[tokio::test]
async fn what_is_replayed_or_changed_on_the_way_is_refused() {
    let cluster = Cluster::new();
    let (a, ..) = bind(&cluster.identity("a"));
    let (b, metrics, to) = bind(&cluster.identity("b"));
    let between = UdpSocket::bind(local()).await.unwrap();
    let mut buffer = [0; 2000];
    let mut caught = Vec::new();
    for n in 0..3_u8 {
        a.send(between.local_addr().unwrap(), &[n]).await.unwrap();
        let (length, _) = between.recv_from(&mut buffer).await.unwrap();
        assert!(length <= 1400);
        caught.push(buffer[..length].to_vec());
    }
    let mut changed = caught[2].clone();
    changed[30] ^= 1;
    // Out of order, each twice, and one changed.
    for sealed in [&caught[1], &caught[0], &caught[1], &caught[0], &changed, &caught[2]] {
        between.send_to(sealed, to).await.unwrap();
    }
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(timeout(Duration::from_secs(5), b.recv()).await.unwrap().unwrap().1[0]);
    }
    assert_eq!(heard, [1, 0, 2]);
    assert_eq!(metrics.refusals.count(Reason::Replay), 2);
    assert_eq!(metrics.refusals.count(Reason::Key), 1);
}

/// Who has just started knows nothing of what was said before, and could be told it again.
#[tokio::test]
async fn old_news_is_refused_without_a_memory_of_it() {
    let cluster = Cluster::new();
    let (a, ..) = bind(&cluster.identity("a"));
    let (b, metrics, to) = bind(&cluster.identity("b"));
    let (sealer, now) = (Sealer::new(), SystemTime::now());
    let key = sealer.key(&cluster.identity("a").cluster_key(b"datagrams")).unwrap();
    let said = |plain, at| sealer.seal(&key, plain, at).unwrap();
    let between = UdpSocket::bind(local()).await.unwrap();
    for sealed in
        [said(b"old", now - 2 * CLOCKS_APART), said(b"of tomorrow", now + 2 * CLOCKS_APART), said(b"new", now)]
    {
        between.send_to(&sealed, to).await.unwrap();
    }
    a.send(to, b"last").await.unwrap();
    for plain in [&b"new"[..], b"last"] {
        assert_eq!(timeout(Duration::from_secs(5), b.recv()).await.unwrap().unwrap().1, plain);
    }
    assert_eq!(metrics.refusals.count(Reason::Clock), 2);
}

#[tokio::test]
async fn both_families_on_one_socket() {
    let cluster = Cluster::new();
    let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
    let open = |name| Datagrams::bind(any, cluster.identity(name), WireMetrics::default()).unwrap();
    let (a, b) = (open("a"), open("b"));
    let to = SocketAddr::from(([127, 0, 0, 1], b.local_addr().unwrap().port()));
    a.send(to, b"x").await.unwrap();
    let (from, heard) = timeout(Duration::from_secs(5), b.recv()).await.unwrap().unwrap();
    assert_eq!(heard, b"x");
    assert_eq!(from, SocketAddr::from(([127, 0, 0, 1], a.local_addr().unwrap().port())));
}
