//! Tags across a chain of upstreams.

use std::time::Duration;

use prometheus_client::encoding::text::encode;

use super::node::Node;
use super::registry::{Registry, State};

const TAG: &str = "/v2/acme/app/manifests/v1?ns=reg.test";

async fn registry(layer: Option<&[u8]>) -> Registry {
    let mut state = State::default();
    if let Some(layer) = layer {
        state.push("acme/app", "v1", layer);
    }
    Registry::start(state).await
}

async fn node(dir: &tempfile::TempDir, chain: &[&Registry], more: &str) -> Node {
    let urls: Vec<String> = chain.iter().map(|registry| registry.server.url()).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    Node::start(dir.path(), &[("reg.test", &urls)], more).await
}

#[tokio::test]
async fn a_mirrors_no_is_not_the_last_word() {
    let (empty, origin) = (registry(None).await, registry(Some(b"x")).await);
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, &[&empty, &origin], "").await;
    assert_eq!(node.get(TAG, None).await.status, 200);
    origin.now().content.clear();
    assert_eq!(node.get("/v2/acme/app/manifests/v2?ns=reg.test", None).await.status, 404);
    node.end().await;
}

#[tokio::test]
async fn what_the_registry_deleted_is_given_or_not() {
    for (policy, status) in [("serve", 200), ("deny", 404)] {
        let origin = registry(Some(b"x")).await;
        let dir = tempfile::tempdir().unwrap();
        let node = node(&dir, &[&origin], &format!("[tags]\non_deleted = {policy:?}")).await;
        assert_eq!(node.get(TAG, None).await.status, 200);
        origin.now().content.clear();
        let reply = node.get(TAG, None).await;
        assert_eq!(reply.status, status, "{policy}");
        let warning = reply.headers.get("warning").map(String::as_str);
        assert_eq!(warning, (status == 200).then_some("299 larder \"Deleted at the origin\""));
        node.end().await;
    }
}

#[tokio::test]
async fn what_was_private_and_is_deleted_is_for_those_who_had_it() {
    let origin = registry(Some(b"x")).await;
    (origin.now().challenges, origin.now().private) = (true, true);
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, &[&origin], "").await;
    let [alice, mallory] =
        [node.token(TAG, Some(("alice", "secret"))).await, node.token(TAG, Some(("mallory", "guess"))).await];
    assert_eq!(node.get(TAG, Some(&alice)).await.status, 200);
    origin.now().content.clear();
    assert_eq!(node.get(TAG, Some(&alice)).await.status, 200);
    assert_eq!(node.get(TAG, Some(&mallory)).await.status, 401);
    // A registry that hides what isn't yours says the same to all; what is remembered tells them apart.
    (origin.now().challenges, origin.now().private) = (false, false);
    assert_eq!(node.get(TAG, Some(&alice)).await.status, 200);
    assert_eq!(node.get(TAG, Some(&mallory)).await.status, 404);
    node.end().await;
}

#[tokio::test]
async fn a_stale_answer_is_the_newest_given_also_after_a_restart() {
    let origin = registry(Some(b"old")).await;
    let dir = tempfile::tempdir().unwrap();
    let first = node(&dir, &[&origin], "").await;
    assert_eq!(first.get(TAG, None).await.status, 200);
    let (new, _) = origin.now().push("acme/app", "v1", b"new");
    assert_eq!(first.get(TAG, None).await.headers["docker-content-digest"], new.to_string());
    first.end().await;
    origin.now().down = true;
    let second = node(&dir, &[&origin], "").await;
    let reply = second.get(TAG, None).await;
    assert_eq!((reply.status, &reply.headers["docker-content-digest"]), (200, &new.to_string()));
    assert_eq!(reply.headers["warning"], "110 larder \"Response is Stale\"");
    second.end().await;
}

#[tokio::test]
async fn a_mirror_that_disagrees_is_reported() {
    let (mirror, origin) = (registry(Some(b"old")).await, registry(Some(b"new")).await);
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, &[&mirror, &origin], "").await;
    let mut metrics = prometheus_client::registry::Registry::default();
    node.pull.metrics().register(&mut metrics);
    assert_eq!(node.get(TAG, None).await.status, 200);
    let reported = async {
        loop {
            let mut text = String::new();
            encode(&mut text, &metrics).unwrap();
            if text.contains("larder_tag_disagreements_total 1\n") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), reported).await.unwrap();
    let heads = origin.count("HEAD /v2/acme/app/manifests/v1");
    assert_eq!(node.get(TAG, None).await.status, 200);
    assert_eq!((heads, origin.count("HEAD /v2/acme/app/manifests/v1")), (1, 1), "once a minute at the most");
    node.end().await;
}

/// Each of its two questions would be answered in time.
#[tokio::test]
async fn for_a_tag_and_its_manifest_there_is_one_deadline() {
    let origin = registry(Some(b"x")).await;
    origin.now().slow = Duration::from_millis(1500);
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, &[&origin], "[mirror]\nreply_deadline = \"2s\"").await;
    let reply = node.get(TAG, None).await;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert_eq!(origin.count("HEAD /v2/acme/app/manifests/v1"), 1);
    // The manifest comes all the same, and is here for who asks again.
    origin.now().slow = Duration::ZERO;
    assert_eq!(node.get(TAG, None).await.status, 200);
    node.end().await;
}
