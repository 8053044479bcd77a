use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::*;
use crate::config;
use crate::containerd::client::fake::{self, Held, OnPull};

const DEADLINE: Duration = Duration::from_secs(5);

struct Node {
    canary: Arc<Canary>,
    client: Client,
    held: Arc<Held>,
    _folder: TempDir,
}

impl Node {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("containerd.sock");
        let client = Client::new(&config::Containerd { socket, ..config::Containerd::default() }).unwrap();
        Self { canary: Arc::new(Canary::new()), client, held: Arc::default(), _folder: folder }
    }

    fn serve(&self, on_pull: OnPull) -> tokio_util::task::AbortOnDropHandle<()> {
        fake::serve(self.client.socket(), Arc::clone(&self.held), on_pull)
    }

    /// A containerd whose pulls come to the mirror, and end so.
    fn comes_to_us(&self, end: Result<(), Status>) -> OnPull {
        let canary = Arc::clone(&self.canary);
        Box::new(move |name| {
            let tag = name.rsplit_once(':').unwrap().1.parse().unwrap();
            canary.arrived(&tag);
            Box::pin(std::future::ready(end.clone()))
        })
    }

    async fn prove(&self) -> Verdict {
        self.canary.prove(&self.client, DEADLINE).await.verdict
    }
}

fn ends(end: Result<(), Status>) -> OnPull {
    Box::new(move |_| Box::pin(std::future::ready(end.clone())))
}

#[tokio::test]
async fn used_and_the_image_is_removed() {
    let node = Node::new();
    node.held.images.lock().unwrap().extend(["larder.invalid/canary:left".to_owned(), "keep:me".to_owned()]);
    let _serving = node.serve(node.comes_to_us(Ok(())));
    assert_eq!(node.prove().await, Verdict::Used);
    assert_eq!(*node.held.images.lock().unwrap(), ["keep:me"]);
    assert_eq!(node.canary.reports().borrow().as_ref().unwrap().verdict, Verdict::Used);
}

#[tokio::test]
async fn unused_when_no_request_arrives() {
    let node = Node::new();
    let _serving = node.serve(ends(Err(Status::unknown("dial tcp: lookup larder.invalid: no such host"))));
    let verdict = node.prove().await;
    assert!(matches!(&verdict, Verdict::Unused { pull_error } if pull_error.contains("no such host")), "{verdict:?}");
    assert!(node.held.images.lock().unwrap().is_empty());
}

#[tokio::test]
async fn unused_when_another_serves_it() {
    let node = Node::new();
    let _serving = node.serve(ends(Ok(())));
    assert!(matches!(node.prove().await, Verdict::Unused { .. }));
    assert!(node.held.images.lock().unwrap().is_empty());
}

#[tokio::test]
async fn failing_when_the_request_arrives_and_the_pull_fails() {
    let node = Node::new();
    let _serving = node.serve(node.comes_to_us(Err(Status::internal("no space left on device"))));
    let verdict = node.prove().await;
    assert!(matches!(&verdict, Verdict::Failing { pull_error } if pull_error.contains("no space")), "{verdict:?}");
}

#[tokio::test]
async fn unknown_without_containerd_or_while_it_starts() {
    let node = Node::new();
    assert!(matches!(node.prove().await, Verdict::Unknown { .. }));
    for status in [
        Status::unknown("server is not initialized yet"),
        Status::unavailable("closing"),
        Status::unimplemented("unknown service runtime.v1.ImageService"),
    ] {
        let serving = node.serve(ends(Err(status.clone())));
        let verdict = node.prove().await;
        assert!(matches!(verdict, Verdict::Unknown { .. }), "{status}: {verdict:?}");
        serving.abort();
        assert!(serving.await.is_err());
        std::fs::remove_file(node.client.socket()).unwrap();
    }
}

#[tokio::test]
async fn a_request_for_another_tag_proves_nothing() {
    let node = Node::new();
    let canary = Arc::clone(&node.canary);
    let _serving = node.serve(Box::new(move |_| {
        canary.arrived(&"0123456789abcdef".parse().unwrap());
        Box::pin(std::future::ready(Err(Status::not_found("nothing"))))
    }));
    assert!(matches!(node.prove().await, Verdict::Unused { .. }));
}

#[tokio::test]
async fn metrics_say_what_happened() {
    let node = Node::new();
    let mut registry = Registry::default();
    node.canary.register(&mut registry);
    let _serving = node.serve(node.comes_to_us(Ok(())));
    node.prove().await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in ["larder_canary_success 1", "larder_canary_runs_total{result=\"used\"} 1"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("timestamp_seconds 0"), "{text}");
}

#[test]
fn a_report_goes_through_json() {
    let verdict = Verdict::Unused { pull_error: "e".to_owned() };
    let report = Report { verdict, at: 7, took: Duration::from_millis(1500) };
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(json, r#"{"verdict":"unused","pull_error":"e","at":7,"took_seconds":1.5}"#);
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

#[tokio::test]
async fn watching_proves_at_start_on_change_and_after_a_restart() {
    let node = Node::new();
    let (changed, shutdown) = (Arc::new(Notify::new()), CancellationToken::new());
    let serving = node.serve(node.comes_to_us(Ok(())));
    let mut reports = node.canary.reports();
    let watching = tokio::spawn({
        let (canary, client) = (Arc::clone(&node.canary), node.client.clone());
        let (changed, shutdown) = (Arc::clone(&changed), shutdown.clone());
        async move { canary.watch(&client, Duration::from_secs(3600), &changed, &shutdown).await }
    });
    reports.changed().await.unwrap();
    changed.notify_one();
    reports.changed().await.unwrap();
    assert_eq!(node.held.pulls.lock().unwrap().len(), 2);

    serving.abort();
    assert!(serving.await.is_err());
    std::fs::remove_file(node.client.socket()).unwrap();
    let _again = node.serve(node.comes_to_us(Ok(())));
    tokio::time::timeout(Duration::from_secs(20), reports.changed()).await.unwrap().unwrap();
    assert_eq!(reports.borrow().as_ref().unwrap().verdict, Verdict::Used);
    assert_eq!(node.held.pulls.lock().unwrap().len(), 3);

    shutdown.cancel();
    watching.await.unwrap();
}

#[tokio::test]
async fn a_zero_interval_turns_it_off() {
    let node = Node::new();
    node.canary.watch(&node.client, Duration::ZERO, &Notify::new(), &CancellationToken::new()).await;
    assert!(node.canary.reports().borrow().is_none());
}
