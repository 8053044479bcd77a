//! Tags through the cluster.

use super::neighbour::{Habit, peer};
use super::*;
use crate::config;
use crate::image::{Access, MediaType, Tag};
use crate::peers::script::{Script, Told};
use crate::peers::{TagMeaning, Turn};
use crate::pull::{Pace, permit};
use crate::store::TagRecord;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest, as far as anybody here looks into it.
fn manifest() -> Bytes {
    Bytes::from_static(br#"{"config":{"digest":"x","size":1},"layers":[]}"#)
}

fn answer(manifest: &Bytes, age: u64, access: Access) -> TagMeaning {
    let (digest, media_type) = (Digest::of(manifest), MediaType::new(MANIFEST).unwrap());
    TagMeaning { digest, media_type, size: manifest.len() as u64, age: Duration::from_secs(age), access }
}

/// A node whose one upstream has a manifest under every tag.
async fn tagged(script: &Script, manner: Manner) -> (Node, Registry, Tag) {
    let upstream = Registry::start(&manifest()).await;
    upstream.always(manner);
    let node = Node::among(&manifest(), &[&upstream], "", Some(Peers::scripted(script)));
    (node, upstream, "v1".parse().unwrap())
}

#[tokio::test]
async fn what_another_was_told_is_not_asked_again() {
    let script = Script::default();
    script.tag(answer(&manifest(), 3, Access::Anonymous));
    let (node, upstream, tag) = tagged(&script, Manner::default()).await;
    let place = &node.wanted.place;
    let resolved = node.pull.resolve(place, &Grant::Anonymous, &tag).await.unwrap();
    assert_eq!((resolved.digest, resolved.stale_for), (Digest::of(&manifest()), None));
    assert_eq!(upstream.heads(), 0);
    let noted = async {
        while node.store.tag(&place.registry, &place.repository, &tag).await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), noted).await.expect("it is noted as ours");
}

#[tokio::test]
async fn what_somebody_was_told_under_authorization_is_not_for_anybody() {
    let script = Script::default();
    script.tag(answer(&Bytes::from_static(b"{}"), 3, Access::Authorized));
    let (node, upstream, tag) = tagged(&script, Manner::default()).await;
    let resolved = node.pull.resolve(&node.wanted.place, &Grant::Anonymous, &tag).await.unwrap();
    assert_eq!((resolved.digest, upstream.heads()), (Digest::of(&manifest()), 1));
}

#[tokio::test]
async fn who_asks_for_others_tells_them() {
    let script = Script::default();
    script.asks();
    let (node, _upstream, tag) = tagged(&script, Manner::default()).await;
    node.pull.resolve(&node.wanted.place, &Grant::Anonymous, &tag).await.unwrap();
    assert!(script.told().contains(&Told::Tag(answer(&manifest(), 0, Access::Anonymous))), "{:?}", script.told());
}

#[tokio::test]
async fn who_asks_in_vain_lets_others() {
    let script = Script::default();
    script.asks();
    let (node, _upstream, tag) = tagged(&script, Manner { status: Some(503), ..Manner::default() }).await;
    node.pull.resolve(&node.wanted.place, &Grant::Anonymous, &tag).await.unwrap_err();
    assert!(script.told().contains(&Told::TagReleased));
}

#[tokio::test]
async fn in_an_outage_the_newest_answer_holds_whose_manifest_is_to_be_had() {
    let script = Script::default();
    script.newest(answer(&manifest(), 60, Access::Anonymous));
    let (node, _upstream, tag) = tagged(&script, Manner { status: Some(503), ..Manner::default() }).await;
    let place = &node.wanted.place;
    script.turn(Turn::Upstream { upto: u64::MAX });
    node.pull.resolve(place, &Grant::Anonymous, &tag).await.expect_err("nobody has the manifest");

    script.turn(Turn::Peer(peer(1, &manifest(), Habit { whole: true, ..Habit::default() })));
    let resolved = node.pull.resolve(place, &Grant::Anonymous, &tag).await.unwrap();
    assert_eq!(resolved.digest, Digest::of(&manifest()));
    assert!(resolved.stale_for.is_some_and(|age| (60..65).contains(&age.as_secs())), "{:?}", resolved.stale_for);

    // What is older than our own is nothing new.
    script.newest(answer(&Bytes::from_static(b"{}"), 7200, Access::Anonymous));
    let again = node.pull.resolve(place, &Grant::Anonymous, &tag).await.unwrap();
    assert_eq!(again.digest, Digest::of(&manifest()));
}

#[tokio::test]
async fn the_background_asks_the_cluster_while_upstreams_are_left_alone() {
    let script = Script::default();
    script.newest(answer(&manifest(), 60, Access::Anonymous));
    let (node, upstream, tag) = tagged(&script, Manner::default()).await;
    let (place, pace) = (&node.wanted.place, Arc::new(Pace::new(config::Bytes(1 << 30))));
    script.turn(Turn::Upstream { upto: u64::MAX });
    upstream.then(Manner { status: Some(429), ..Manner::default() });
    assert!(node.fetch(0).await.is_err());
    let among_peers = async || node.pull.resolve_among_peers(place, &Grant::Anonymous, &tag, &pace).await;
    assert_eq!(among_peers().await, None, "no peer has the manifest");

    script.turn(Turn::Peer(peer(1, &manifest(), Habit { whole: true, ..Habit::default() })));
    let resolved = among_peers().await.expect("a peer has it, and its tag's meaning");
    assert_eq!(resolved.digest, Digest::of(&manifest()));
    assert!(resolved.stale_for.is_some_and(|age| age >= Duration::from_secs(60)), "{resolved:?}");
    assert_eq!((upstream.asked().len(), upstream.heads()), (1, 0), "it was left alone");
}

#[tokio::test]
async fn an_answer_is_not_young_because_the_clock_was_set_back() {
    let upstream = Registry::start(&manifest()).await;
    let node = Node::with(&manifest(), &[&upstream], "[tags]\nmax_age = \"1m\"");
    let (place, tag) = (&node.wanted.place, "v1".parse().unwrap());
    let manifest = Wanted { kind: Kind::Manifest, ..node.wanted.clone() };
    drop(node.pull.fetch(&manifest, 0).await.unwrap());
    assert!(!node.pull.0.rights.look_is_due(place), "nobody asks behind a reply");
    let record = |ahead: i64| {
        let TagMeaning { digest, media_type, size, .. } = answer(&node.blob, 0, Access::Anonymous);
        let confirmed_at = permit::now().saturating_add_signed(ahead);
        TagRecord { digest, media_type, size, confirmed_at }
    };
    for (ahead, heads) in [(-1, 0), (3600, 1)] {
        node.store.record_tag(&place.registry, &place.repository, &tag, record(ahead)).await;
        node.pull.resolve(place, &Grant::Anonymous, &tag).await.unwrap();
        assert_eq!(upstream.heads(), heads, "confirmed {ahead} seconds from now");
    }
}

/// What goes wrong with a manifest that a tag names, where there is no HEAD to tell what it is.
fn ills() -> Vec<(&'static str, Manner)> {
    let length = manifest().len() as u64;
    let of = |manner: Manner| Manner { no_head: true, says: Some(Digest::of(&manifest())), ..manner };
    let unsaid = |manner: Manner| Manner { no_head: true, ..manner };
    vec![
        ("cut at once", of(Manner { cut_at: Some(0), ..Manner::default() })),
        ("cut", of(Manner { cut_at: Some(20), ..Manner::default() })),
        ("cut, and no length said", unsaid(Manner { cut_at: Some(20), no_length: true, ..Manner::default() })),
        ("wrong", of(Manner { wrong_byte: Some(30), ..Manner::default() })),
        ("wrong, and no digest said", unsaid(Manner { wrong_byte: Some(0), ..Manner::default() })),
        ("short", of(Manner { length: Some(length - 5), ..Manner::default() })),
        ("short, and no digest said", unsaid(Manner { length: Some(length - 5), ..Manner::default() })),
        ("another", Manner { says: Some(Digest::of(b"another")), no_head: true, ..Manner::default() }),
        ("stalls", of(Manner { stall_at: Some(0), ..Manner::default() })),
    ]
}

#[tokio::test]
async fn a_manifest_that_comes_wrong_or_in_part_is_another_upstreams_to_give() {
    for (ill, manner) in ills() {
        let (first, second) = (Registry::start(&manifest()).await, Registry::start(&manifest()).await);
        first.always(manner);
        second.always(Manner { no_head: true, ..Manner::default() });
        let node = Node::new(&manifest(), &[&first, &second]);
        let resolved = node.pull.resolve(&node.wanted.place, &Grant::Anonymous, &"v1".parse().unwrap()).await;
        assert_eq!(resolved.expect(ill).digest, Digest::of(&manifest()), "{ill}");
        assert_eq!((first.asked().len(), second.asked().len()), (1, 1), "{ill}");
    }
}

#[tokio::test]
async fn alone_it_is_an_error_and_nothing_of_it_is_kept() {
    for (ill, manner) in ills() {
        let only = Registry::start(&manifest()).await;
        only.always(manner);
        let node = Node::with(&manifest(), &[&only], "stall_timeout = \"1s\"");
        let (place, tag) = (&node.wanted.place, "v1".parse().unwrap());
        let error = node.pull.resolve(place, &Grant::Anonymous, &tag).await.expect_err(ill);
        assert!(matches!(error, PullError::NoAnswer(_)), "{ill}: {error:?}");
        assert!(error.to_string().contains(&only.address.to_string()), "{ill}: {error}");
        assert_eq!(node.store.usage().await.unwrap().blobs, 0, "{ill}");
        assert!(node.store.tag(&place.registry, &place.repository, &tag).await.is_none(), "{ill}");
    }
}
