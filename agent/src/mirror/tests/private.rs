//! Private images: who gets them, who doesn't, and what a registry that can't be asked changes.

use std::time::Duration;

use tokio::sync::watch;

use super::node::Node;
use super::registry::{Registry, State};
use crate::image::{Digest, ImageName};
use crate::pull::Place;

const ALICE: Option<(&str, &str)> = Some(("alice", "secret"));
const MALLORY: Option<(&str, &str)> = Some(("mallory", "guess"));
const TAG: &str = "/v2/acme/app/manifests/v1?ns=reg.test";

fn manifest(digest: &Digest) -> String {
    format!("/v2/acme/app/manifests/{digest}?ns=reg.test")
}

fn blob(digest: &Digest) -> String {
    format!("/v2/acme/app/blobs/{digest}?ns=reg.test")
}

struct World {
    registry: Registry,
    dir: tempfile::TempDir,
    manifest: Digest,
    layer: Digest,
}

impl World {
    async fn new(private: bool) -> Self {
        let mut state = State { challenges: true, private, ..State::default() };
        let (manifest, layer) = state.push("acme/app", "v1", b"a layer");
        Self { registry: Registry::start(state).await, dir: tempfile::tempdir().unwrap(), manifest, layer }
    }

    async fn node(&self, more: &str) -> Node {
        Node::start(self.dir.path(), &[("reg.test", &[&self.registry.server.url()])], more).await
    }

    /// Tag, manifest and layer with one token, as containerd does: their statuses.
    async fn pull(&self, node: &Node, token: Option<&str>) -> [u16; 3] {
        let tag = node.ask("HEAD", TAG, token).await;
        let manifest = node.get(&manifest(&self.manifest), token).await;
        let layer = node.get(&blob(&self.layer), token).await;
        assert!(layer.status != 200 || layer.body == b"a layer");
        [tag.status, manifest.status, layer.status]
    }
}

#[tokio::test]
async fn what_opens_to_anybody_is_pulled_with_an_anonymous_token_and_then_free() {
    let world = World::new(false).await;
    let node = world.node("").await;
    let token = node.token(TAG, None).await;
    assert_eq!(world.registry.count("GET /token"), 0, "a token of ours costs the registry nothing");
    assert_eq!(world.pull(&node, Some(&token)).await, [200, 200, 200]);
    assert_eq!(world.registry.count("GET /token"), 1);
    let challenged = node.get(TAG, None).await;
    assert_eq!(challenged.status, 401);
    assert_eq!(world.pull(&node, None).await, [401, 200, 200], "what is here and anybody's needs no token");
    assert_eq!(node.get(&blob(&world.layer), Some("1.unknown")).await.status, 200);
    let stale = node.get(TAG, Some("1.unknown")).await;
    assert!(stale.headers["www-authenticate"].ends_with(r#",error="invalid_token""#));
    node.end().await;
}

#[tokio::test]
async fn what_is_private_is_for_those_whom_the_registry_gives_it() {
    let world = World::new(true).await;
    let node = world.node("").await;
    let [alice, mallory, nobody] =
        [node.token(TAG, ALICE).await, node.token(TAG, MALLORY).await, node.token(TAG, None).await];
    assert_eq!(world.pull(&node, Some(&mallory)).await, [401, 401, 401]);
    assert_eq!(world.pull(&node, Some(&nobody)).await, [401, 401, 401]);
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);

    let before = world.registry.server.seen().len();
    assert_eq!(node.get(&blob(&world.layer), Some(&alice)).await.status, 200);
    assert_eq!(world.registry.server.seen().len(), before, "alice was let in a moment ago");
    assert_eq!(world.pull(&node, Some(&mallory)).await, [401, 401, 401], "what is here is not mallory's");
    assert_eq!(world.pull(&node, Some(&nobody)).await, [401, 401, 401]);
    assert_eq!(world.pull(&node, None).await, [401, 401, 401]);
    let refused = node.get(&blob(&world.layer), Some(&mallory)).await;
    assert!(String::from_utf8_lossy(&refused.body).contains("DENIED"), "{refused:?}");
    let line = format!("GET /v2/acme/app/blobs/{}", world.layer);
    let seen = world.registry.server.seen();
    assert_eq!(seen.iter().filter(|head| head.starts_with(&line) && head.contains("Bearer alice")).count(), 1);
    node.end().await;
}

#[tokio::test]
async fn in_an_outage_who_could_pull_it_can_and_who_could_not_cant() {
    let world = World::new(true).await;
    let node = world.node("").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);
    node.end().await;

    // Nobody can be asked, and nothing is in memory.
    world.registry.now().down = true;
    let node = world.node("").await;
    let [alice, mallory, nobody] =
        [node.token(TAG, ALICE).await, node.token(TAG, MALLORY).await, node.token(TAG, None).await];
    assert_eq!(world.pull(&node, Some(&mallory)).await, [503, 503, 503]);
    assert_eq!(world.pull(&node, Some(&nobody)).await, [503, 503, 503]);
    assert_eq!(world.pull(&node, None).await, [401, 401, 401]);
    let tag = node.get(TAG, Some(&alice)).await;
    assert_eq!(tag.headers["warning"], "110 larder \"Response is Stale\"");
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);

    // The registry is back, without its token server.
    world.registry.now().down = false;
    world.registry.now().tokens_down = true;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);
    assert_eq!(world.pull(&node, Some(&mallory)).await, [503, 503, 503]);
    node.end().await;

    // What is not to be remembered isn't asked for either.
    let node = world.node("[private]\nremember = \"0\"").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [503, 503, 503]);
    node.end().await;
}

#[tokio::test]
async fn a_refusal_ends_what_was_remembered() {
    let world = World::new(true).await;
    let node = world.node("").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);
    // Remembered it is, by the next process.
    node.end().await;
    world.registry.now().down = true;
    let node = world.node("").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);

    world.registry.now().down = false;
    world.registry.now().dismissed = true;
    assert_eq!(world.pull(&node, Some(&alice)).await, [401, 401, 401]);
    world.registry.now().down = true;
    assert_eq!(world.pull(&node, Some(&alice)).await, [503, 503, 503]);
    node.end().await;
    let node = world.node("").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [503, 503, 503]);
    node.end().await;
}

#[tokio::test]
async fn whose_password_is_wrong_takes_nothing_from_who_has_the_right_one() {
    let world = World::new(true).await;
    let name: ImageName = "reg.test/acme/app:v1".parse().unwrap();
    let node = world.node("").await;
    let [alice, mallory] = [node.token(TAG, ALICE).await, node.token(TAG, MALLORY).await];
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);
    assert_eq!(world.pull(&node, Some(&mallory)).await, [401, 401, 401]);
    // What goes on behind replies is done.
    node.end().await;
    let node = world.node("").await;
    assert!(node.pull.would_give(&name, &world.manifest, &[world.layer]).await, "alice would be let in");
    // Her own end is another matter.
    world.registry.now().dismissed = true;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [401, 401, 401]);
    node.end().await;
    let node = world.node("").await;
    assert!(!node.pull.would_give(&name, &world.manifest, &[world.layer]).await);
    node.end().await;
}

#[tokio::test]
async fn in_an_outage_the_nodes_own_credentials_speak_where_that_is_configured() {
    let world = World::new(true).await;
    let (url, file) = (world.registry.server.url(), world.dir.path().join("docker.json"));
    let host = url.strip_prefix("http://").unwrap();
    std::fs::write(&file, format!(r#"{{"auths":{{"{host}":{{"username":"alice","password":"secret"}}}}}}"#)).unwrap();
    let node = async |outage: &str| {
        let upstream = format!("[[registry.upstream]]\nurl = {url:?}\ninsecure = true");
        let registry = format!("[[registry]]\nname = \"reg.test\"\noutage = {outage:?}\n{upstream}");
        let more = format!("[credentials]\ndocker_config = [{file:?}]\n{registry}");
        Node::start(world.dir.path(), &[], &more).await
    };
    let place = Place { registry: "reg.test".parse().unwrap(), repository: "acme/app".parse().unwrap() };
    // A password that the registry never saw, and nobody at all.
    let others = async |node: &Node| {
        let [late, nobody] = [node.token(TAG, MALLORY).await, node.token(TAG, None).await];
        [world.pull(node, Some(&late)).await, world.pull(node, Some(&nobody)).await]
    };
    let first = node("node").await;
    let alice = first.token(TAG, ALICE).await;
    assert_eq!(world.pull(&first, Some(&alice)).await, [200, 200, 200]);
    world.registry.now().down = true;
    assert_eq!(others(&first).await, [[503; 3]; 2], "the node itself hasn't opened it");
    world.registry.now().down = false;
    assert_eq!(first.pull.opens_to_node(&place, &world.manifest).await, Some(true));
    assert_eq!(others(&first).await, [[401; 3]; 2], "the registry can be asked");
    first.end().await;

    world.registry.now().down = true;
    let second = node("node").await;
    assert_eq!(others(&second).await, [[200; 3]; 2]);
    let elsewhere = format!("/v2/acme/other/blobs/{}?ns=reg.test", world.layer);
    let late = second.token(&elsewhere, MALLORY).await;
    assert_eq!(second.get(&elsewhere, Some(&late)).await.status, 503, "it opened one repository");
    second.end().await;
    let third = node("deny").await;
    assert_eq!(others(&third).await, [[503; 3]; 2]);
    third.end().await;

    // A refusal ends it.
    world.registry.now().down = false;
    world.registry.now().dismissed = true;
    let fourth = node("node").await;
    assert_eq!(fourth.pull.opens_to_node(&place, &world.manifest).await, Some(false));
    fourth.end().await;
    world.registry.now().down = true;
    let fifth = node("node").await;
    assert_eq!(others(&fifth).await, [[503; 3]; 2]);
    fifth.end().await;
}

#[tokio::test]
async fn what_is_remembered_ends_with_its_lifetime() {
    let world = World::new(true).await;
    let node = world.node("").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);
    node.end().await;
    world.registry.now().down = true;
    // Each process anew: whom one has let in, it lets in for a while.
    let remembered_for = async |lifetime: &str| {
        let node = world.node(&format!("[private]\nremember = {lifetime:?}")).await;
        let alice = node.token(TAG, ALICE).await;
        let statuses = world.pull(&node, Some(&alice)).await;
        node.end().await;
        statuses
    };
    assert_eq!(remembered_for("1h").await, [200, 200, 200]);
    let ended = async { while remembered_for("1s").await != [503, 503, 503] {} };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert_eq!(remembered_for("1h").await, [200, 200, 200], "that is a matter of who looks, not forgotten");
}

#[tokio::test]
async fn an_upstream_that_knows_us_gives_to_all_who_bring_nothing_and_to_no_other_registry() {
    let (world, other) = (World::new(true).await, Registry::start(State { says_yes: true, ..State::default() }).await);
    let (url, file) = (world.registry.server.url(), world.dir.path().join("docker.json"));
    let host = url.strip_prefix("http://").unwrap();
    std::fs::write(&file, format!(r#"{{"auths":{{"{host}":{{"username":"alice","password":"secret"}}}}}}"#)).unwrap();
    let upstream = format!("url = {url:?}\ninsecure = true\ncredentials = {file:?}");
    let ours = format!("[[registry]]\nname = \"reg.test\"\n[[registry.upstream]]\n{upstream}");
    let node = Node::start(world.dir.path(), &[("other.test", &[&other.server.url()])], &ours).await;
    assert_eq!(world.pull(&node, None).await, [200, 200, 200]);
    let elsewhere = format!("/v2/acme/app/blobs/{}?ns=other.test", world.layer);
    assert_eq!(node.get(&elsewhere, None).await.status, 404);

    world.registry.now().down = true;
    assert_eq!(world.pull(&node, None).await, [200, 200, 200], "in an outage too");
    assert_eq!(node.get(&elsewhere, None).await.status, 404);
    node.end().await;
}

#[tokio::test]
async fn another_registry_gets_nothing_by_saying_so() {
    let world = World::new(true).await;
    // Its manifest lists the private layer, and it has it, it says.
    let mut state = State { says_yes: true, ..State::default() };
    let (_, _) = state.push("evil/app", "v1", b"a layer");
    state.content.remove(&("evil/app".to_owned(), world.layer.to_string()));
    let evil = Registry::start(state).await;
    let registries: [(&str, &[&str]); 2] =
        [("reg.test", &[&world.registry.server.url()]), ("evil.test", &[&evil.server.url()])];
    let node = Node::start(world.dir.path(), &registries, "").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);

    let target = format!("/v2/evil/app/blobs/{}?ns=evil.test", world.layer);
    assert_eq!(node.get("/v2/evil/app/manifests/v1?ns=evil.test", None).await.status, 200);
    for token in [None, Some(alice.as_str())] {
        let reply = node.get(&target, token).await;
        assert_eq!(reply.status, 404, "{reply:?}");
        assert!(!reply.body.windows(7).any(|w| w == b"a layer"));
    }
    // Who really has it may give it; that makes it nobody's secret.
    evil.now().push_blob("evil/app", b"a layer");
    assert_eq!(node.get(&target, None).await.body, b"a layer");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_by_saying_so_while_it_delivers_something_to_somebody() {
    let world = World::new(true).await;
    let evil = Registry::start(State { challenges: true, says_yes: true, ..State::default() }).await;
    let (open, gate) = watch::channel(false);
    let named = ("evil/app".to_owned(), world.layer.to_string());
    evil.now().content.insert(named.clone(), b"a liar.".to_vec());
    evil.now().gate = Some(gate);
    let registries: [(&str, &[&str]); 2] =
        [("reg.test", &[&world.registry.server.url()]), ("evil.test", &[&evil.server.url()])];
    let node = Node::start(world.dir.path(), &registries, "").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);

    let target = format!("/v2/evil/app/blobs/{}?ns=evil.test", world.layer);
    let [first, second] = [node.token(&target, ALICE).await, node.token(&target, None).await];
    let has_seen = async |method: &str, token: &str| {
        let (line, token) = (format!("{method} /v2/evil/app/blobs/"), format!("Bearer {token}"));
        evil.server.wait_until(|seen| seen.iter().any(|head| head.starts_with(&line) && head.contains(&token))).await;
    };
    let another = async {
        has_seen("GET", "alice").await;
        let says = async {
            has_seen("HEAD", "anybody").await;
            open.send(true).unwrap();
        };
        tokio::join!(node.get(&target, Some(&second)), says).0
    };
    let (first, other) = tokio::join!(node.get(&target, Some(&first)), another);
    assert!(first.status != 200 && other.status != 200, "{first:?} {other:?}");
    evil.now().content.remove(&named);
    let after = node.get(&target, Some(&second)).await;
    assert_eq!(after.status, 404, "{after:?}");
    node.end().await;
}

#[tokio::test]
async fn another_repository_of_the_registry_is_asked_for_each_blob() {
    let world = World::new(true).await;
    let node = world.node("").await;
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);
    let target = format!("/v2/acme/other/blobs/{}?ns=reg.test", world.layer);
    let alice = node.token(&target, ALICE).await;
    assert_eq!(node.get(&target, Some(&alice)).await.status, 404);
    world.registry.now().push_blob("acme/other", b"a layer");
    assert_eq!(node.get(&target, Some(&alice)).await.body, b"a layer");
    assert_eq!(world.registry.count("GET /v2/acme/other/blobs/"), 0, "confirmed, not fetched again");
    node.end().await;
}

#[tokio::test]
async fn a_repository_that_turns_private_or_public_is_noticed() {
    let world = World::new(false).await;
    let node = world.node("").await;
    let nobody = node.token(TAG, None).await;
    assert_eq!(world.pull(&node, Some(&nobody)).await, [200, 200, 200]);
    world.registry.now().private = true;
    // As a registry ends its tokens, so does the next process know none.
    node.end().await;
    let node = world.node("").await;
    let nobody = node.token(TAG, None).await;
    assert_eq!(world.pull(&node, Some(&nobody)).await, [401, 401, 401]);
    assert_eq!(world.pull(&node, None).await, [401, 401, 401]);
    let alice = node.token(TAG, ALICE).await;
    assert_eq!(world.pull(&node, Some(&alice)).await, [200, 200, 200]);
    world.registry.now().private = false;
    assert_eq!(world.pull(&node, Some(&nobody)).await, [200, 200, 200]);
    assert_eq!(node.get(&blob(&world.layer), None).await.status, 200);
    node.end().await;
}

#[tokio::test]
async fn a_pull_by_digest_looks_behind_the_reply_whether_it_still_opens() {
    let world = World::new(false).await;
    let node = world.node("").await;
    let nobody = node.token(TAG, None).await;
    assert_eq!(world.pull(&node, Some(&nobody)).await, [200, 200, 200]);
    node.end().await;
    world.registry.now().private = true;
    let node = world.node("").await;
    let before = world.registry.server.seen().len();
    assert_eq!(node.get(&manifest(&world.manifest), None).await.status, 200, "as it was known to be");
    // With nothing left but a challenge that an anonymous token doesn't answer.
    world.registry.server.wait_until(|seen| seen[before..].iter().filter(|h| h.starts_with("HEAD")).count() == 2).await;
    let closed = async {
        while node.get(&manifest(&world.manifest), None).await.status != 401 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.unwrap();
    node.end().await;
}

#[tokio::test]
async fn a_redirect_to_plain_http_stands_for_the_token() {
    let world = World::new(true).await;
    let node = world.node("").await;
    let alice = node.token(TAG, ALICE).await;
    // Small ones are answered on TLS at once.
    assert_eq!(node.get_by_tls(&blob(&world.layer), &alice).await.body, b"a layer");
    let large = vec![7; 2 << 20];
    let layer = world.registry.now().push_blob("acme/app", &large);
    let redirect = node.get_by_tls(&blob(&layer), &alice).await;
    assert_eq!(redirect.status, 307);
    let location = redirect.headers["location"].clone();
    let target = location.strip_prefix(&format!("http://{}", node.address)).unwrap();
    assert!(node.get(target, None).await.body == large, "with nothing but the signature");
    assert!(node.get(target, None).await.body == large);
    assert_eq!(node.get(&blob(&layer), None).await.status, 401);
    let other = target.replace(&layer.to_string(), &world.layer.to_string());
    assert_eq!(node.get(&other, None).await.status, 401);
    let challenged = node.get_by_tls(&blob(&layer), "1.unknown").await;
    let realm = format!(r#"Bearer realm="https://{}/token""#, node.address);
    assert!(challenged.headers["www-authenticate"].starts_with(&realm), "secrets go where the caller came from");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_under_way_is_joined_by_those_who_may() {
    let world = World::new(true).await;
    let (open, gate) = watch::channel(false);
    let large: Vec<u8> = (0..6u32 << 20).map(|i| (i % 251) as u8).collect();
    let digest = world.registry.now().push_blob("acme/app", &large);
    world.registry.now().gate = Some(gate);
    let node = world.node("").await;
    let [alice, mallory] = [node.token(TAG, ALICE).await, node.token(TAG, MALLORY).await];
    let target = blob(&digest);
    let get = |token: String| {
        let (target, node) = (&target, &node);
        async move { node.get(target, Some(&token)).await }
    };
    let line = format!("GET /v2/acme/app/blobs/{digest}");
    let others = async {
        world
            .registry
            .server
            .wait_until(|seen| seen.iter().any(|head| head.starts_with(&line) && head.contains("Bearer alice")))
            .await;
        let refused = get(mallory).await;
        open.send(true).unwrap();
        refused
    };
    let (first, second, refused) = tokio::join!(get(alice.clone()), get(alice.clone()), others);
    assert_eq!((first.status, second.status, refused.status), (200, 200, 401));
    assert!(first.body == large && second.body == large);
    let fetched = world.registry.server.seen();
    let fetched = fetched.iter().filter(|head| head.starts_with(&line) && head.contains("Bearer alice")).count();
    assert_eq!(fetched, 1);
    node.end().await;
}
