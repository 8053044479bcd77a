//! Tags across a chain of upstreams.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
use tokio::time::timeout;

use super::node::Node;
use super::registry::{Registry, State};
use crate::image::Digest;

const TAG: &str = "/v2/acme/app/manifests/v1?ns=reg.test";
const PATIENCE: Duration = Duration::from_secs(10);

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
async fn one_that_challenges_keeps_its_turn() {
    let (first, second) = (registry(Some(b"first")).await, registry(Some(b"second")).await);
    first.now().challenges = true;
    let [of_first, of_second] = [&first, &second]
        .map(|registry| Digest::of(&registry.now().content[&("acme/app".to_owned(), "v1".to_owned())]).to_string());
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, &[&first, &second], "").await;
    let means = async |token: Option<&str>| {
        let reply = node.ask("HEAD", TAG, token).await;
        (reply.status, reply.headers.get("docker-content-digest").cloned().unwrap_or_default())
    };
    second.now().push("acme/other", "v1", b"second");
    let blob = format!("/v2/acme/other/blobs/{}?ns=reg.test", Digest::of(b"second"));
    let [nobody, nobody_there] = [node.token(TAG, None).await, node.token(&blob, None).await];
    assert_eq!(node.get("/v2/acme/app/tags/list?ns=reg.test", None).await.status, 401);
    assert_eq!(means(Some(&nobody)).await, (200, of_first.clone()));
    first.now().private = true;
    let alice = node.token(TAG, Some(("alice", "secret"))).await;
    assert_eq!(means(Some(&alice)).await, (200, of_first.clone()));
    assert_eq!(second.count("GET"), 0, "but for what the two are compared by");

    // Whom it doesn't know, or can't know without its token server, the second serves.
    assert_eq!(means(Some(&nobody)).await, (200, of_second.clone()));
    (first.now().private, first.now().tokens_down) = (false, true);
    assert_eq!(node.get(&blob, Some(&nobody_there)).await.body, b"second");

    // While it is down, who has no token needs none; when it is back, it is the first again.
    first.now().down = true;
    let served = async {
        while means(None).await != (200, of_second.clone()) {
            assert_eq!(means(Some(&nobody)).await, (200, of_second.clone()));
        }
    };
    timeout(PATIENCE, served).await.unwrap();
    (first.now().down, first.now().tokens_down) = (false, false);
    let back = async { while means(None).await.0 != 401 {} };
    timeout(PATIENCE, back).await.unwrap();
    assert_eq!(means(Some(&nobody)).await, (200, of_first));
    node.end().await;
}

#[tokio::test]
async fn a_challenge_is_an_answer_where_a_mirror_is_silent() {
    let (mirror, origin) = (registry(Some(b"old")).await, registry(Some(b"old")).await);
    origin.now().challenges = true;
    // By its own address, which makes it the origin.
    let name = origin.server.address.to_string();
    let tag = TAG.replace("reg.test", &name);
    let urls = [mirror.server.url(), origin.server.url()];
    let chain: [(&str, &[&str]); 1] = [(&name, &[&urls[0], &urls[1]])];
    let dir = tempfile::tempdir().unwrap();
    let before = Node::start(dir.path(), &chain, "").await;
    assert_eq!(before.get(&tag, None).await.status, 200);
    before.end().await;

    let (new, _) = origin.now().push("acme/app", "v1", b"new");
    mirror.now().down = true;
    let node = Node::start(dir.path(), &chain, "").await;
    let challenged = node.get(&tag, None).await;
    assert_eq!(challenged.status, 401, "{challenged:?}");
    let [nobody, alice] = [node.token(&tag, None).await, node.token(&tag, Some(("alice", "secret"))).await];
    let reply = node.get(&tag, Some(&nobody)).await;
    assert_eq!((reply.status, &reply.headers["docker-content-digest"]), (200, &new.to_string()));
    assert!(!reply.headers.contains_key("warning"));
    // Nor has anybody been told what it refuses them, however public that was before.
    (origin.now().private, origin.now().dismissed) = (true, true);
    for token in [nobody, alice] {
        let refused = node.get(&tag, Some(&token)).await;
        assert_eq!(refused.status, 401, "{refused:?}");
    }
    node.end().await;
}

/// What the configuration lists mirrors alone for is deleted when all of them say so.
#[tokio::test]
async fn a_mirrors_no_deletes_nothing_while_another_is_silent() {
    for (policy, warning) in [("deny", None), ("serve", Some("299 larder \"Deleted at the origin\""))] {
        let (first, second) = (registry(Some(b"x")).await, registry(None).await);
        let dir = tempfile::tempdir().unwrap();
        let node = node(&dir, &[&first, &second], &format!("[tags]\non_deleted = {policy:?}")).await;
        assert_eq!(node.get(TAG, None).await.status, 200);
        first.now().down = true;
        let reply = node.get(TAG, None).await;
        assert_eq!(reply.status, 200, "{policy}: {reply:?}");
        assert_eq!(reply.headers["warning"], "110 larder \"Response is Stale\"");
        first.now().down = false;
        first.now().content.clear();
        let reply = node.get(TAG, None).await;
        assert_eq!(reply.status, if warning.is_some() { 200 } else { 404 }, "{policy}: {reply:?}");
        assert_eq!(reply.headers.get("warning").map(String::as_str), warning);
        node.end().await;
    }
}

#[tokio::test]
async fn a_mirror_that_disagrees_is_reported() {
    for challenges in [false, true] {
        disagreement_is_reported(challenges).await;
    }
}

async fn disagreement_is_reported(challenges: bool) {
    let (mirror, origin) = (registry(Some(b"old")).await, registry(Some(b"new")).await);
    origin.now().challenges = challenges;
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
    timeout(PATIENCE, reported).await.unwrap();
    let heads = origin.count("HEAD /v2/acme/app/manifests/v1");
    assert_eq!(node.get(TAG, None).await.status, 200);
    let asked = if challenges { 2 } else { 1 };
    assert_eq!((heads, origin.count("HEAD /v2/acme/app/manifests/v1")), (asked, asked), "once a minute at the most");
    node.end().await;
}
