//! What a transfer under credentials left, and whose it is.

use super::*;
use crate::image::Access;
use crate::store::Origin;
use crate::upstream::Credentials;

fn user(name: &str) -> Grant {
    Grant::Credentials(Arc::new(Credentials::password(name, "x").unwrap()))
}

/// A node for alice, whose transfer broke off after 5 of 8 MiB.
async fn broken_off() -> (Node, Registry) {
    let blob = blob(8);
    let registry = Registry::start(&blob).await;
    registry.then(Manner { cut_at: Some(5 * MIB), ..Manner::default() });
    registry.then(Manner { status: Some(503), ..Manner::default() });
    let mut node = Node::with(&blob, &[&registry], "resume_within = \"0\"");
    node.wanted.grant = user("alice");
    assert_eq!(node.whole().await, Err(EndedShort));
    (node, registry)
}

/// The registry refuses mallory and nobody else; then alice comes back.
async fn mallory_is_refused_and_alice_goes_on(node: &mut Node, registry: &Registry) {
    registry.always(Manner { status: Some(403), ..Manner::default() });
    node.wanted.grant = user("mallory");
    assert!(matches!(node.fetch(0).await, Err(PullError::Denied(_))));
    registry.always(Manner::default());
    node.wanted.grant = user("alice");
    node.whole().await.unwrap();
}

#[tokio::test]
async fn it_is_gone_on_with() {
    let (node, registry) = broken_off().await;
    node.whole().await.unwrap();
    assert_eq!(registry.asked().last(), Some(&(5 * MIB..8 * MIB)));
    let upstreams = node.pull.0.upstreams.of(&node.wanted.place.registry);
    assert!(upstreams.iter().all(|upstream| !node.pull.0.blame.is_suspect(upstream)), "nobody sent wrong bytes");
    assert!(node.is_stored().await);
}

#[tokio::test]
async fn whom_the_registry_refuses_gets_nothing_of_it_and_takes_nothing_of_it() {
    let (mut node, registry) = broken_off().await;
    mallory_is_refused_and_alice_goes_on(&mut node, &registry).await;
    assert_eq!(registry.asked().last(), Some(&(5 * MIB..8 * MIB)));
}

/// The process ended when all of it was there, and before it was committed.
#[tokio::test]
async fn of_what_is_whole_the_registry_is_asked_too() {
    let (mut node, registry) = broken_off().await;
    let origin = Origin { registry: node.wanted.place.registry.clone(), access: Access::Authorized };
    let ingest = node.store.ingest(&node.wanted.digest, 8 * MIB, origin).await.unwrap();
    ingest.recheck().unwrap();
    ingest.write(5 * MIB, &[node.blob.slice(5 * MIB as usize..)]).unwrap();
    drop(ingest);
    let asked = registry.asked().len();
    mallory_is_refused_and_alice_goes_on(&mut node, &registry).await;
    assert_eq!((registry.asked().len(), registry.heads()), (asked, 2), "not a byte was fetched again");
}
