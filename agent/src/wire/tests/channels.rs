use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::*;

/// A body that somebody else writes.
struct Written(mpsc::Receiver<Bytes>);

impl http_body::Body for Written {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}

#[tokio::test]
async fn what_is_idle_is_closed_and_made_again() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    a.ask(&b).await.unwrap();
    a.ask(&b).await.unwrap();
    assert_eq!(b.metrics.connections(Direction::In), 1, "one for both");
    a.channels.sweep(Instant::now() + Duration::from_secs(50));
    assert_eq!(a.metrics.connections(Direction::Out), 1);
    a.channels.sweep(Instant::now() + Duration::from_secs(61));
    assert_eq!(a.metrics.connections(Direction::Out), 0);
    eventually(|| b.metrics.connections(Direction::In) == 0, "the end of the connection").await;
    a.ask(&b).await.unwrap();
}

#[tokio::test]
async fn a_call_under_way_outlives_its_channel() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.identity("b"));
    let listener = PeerListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let (sender, receiver) = mpsc::channel(1);
    let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
    let service = tower::service_fn(move |_: Request<Incoming>| {
        let written = Written(receiver.lock().unwrap().take().unwrap());
        async { Ok::<_, Infallible>(Response::new(written)) }
    });
    let tasks = TaskTracker::new();
    let metrics = WireMetrics::default();
    tasks.spawn(listener.serve(service, Arc::clone(&b), metrics.clone(), stop.clone()));
    let request = Request::get("/").body(tonic::body::Body::empty()).unwrap();
    let channel = a.channels.to(b.node(), address, Purpose::Bulk);
    let mut body = channel.oneshot(request).await.unwrap().into_body();
    a.channels.sweep(Instant::now() + Duration::from_secs(61));
    for n in 0..3 {
        sender.send(Bytes::from(vec![n])).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), vec![n]);
    }
    // And an agent that ends lets it end.
    stop.cancel();
    sender.send(Bytes::from_static(b"last")).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "last");
    drop(sender);
    assert!(body.collect().await.unwrap().to_bytes().is_empty());
    tasks.close();
    tasks.wait().await;
    assert_eq!(metrics.connections(Direction::In), 0);
}

#[tokio::test]
async fn there_is_a_bound() {
    let cluster = Cluster::new();
    let a = cluster.node("a");
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    for n in 0..2000_u128 {
        let _ = a.channels.to(NodeId::new(n.to_be_bytes()), address, Purpose::Small);
    }
    assert_eq!(a.metrics.connections(Direction::Out), 1024);
    let stop = CancellationToken::new();
    stop.cancel();
    Arc::clone(&a.channels).close_idle(stop).await;
    assert_eq!(a.metrics.connections(Direction::Out), 0);
}
