//! Credentials are told apart alike on every node.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::node::{World, eventually};
use crate::peers::Credential;
use crate::upstream::{Credentials, Grant};
use crate::wire::ClusterCa;

#[tokio::test(flavor = "multi_thread")]
async fn also_by_nodes_that_ran_while_the_authority_was_changed() {
    let mut world = World::new(1);
    let alice = Grant::Credentials(Arc::new(Credentials::password("alice", "wonderland").unwrap()));
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(Arc::clone(&world.nodes[0].identity).keep_fresh(stop));
    let before = world.nodes[0].peers.credential(&alice);
    assert!(matches!(before, Credential::Keyed(_)));

    // An authority that every node must know by now, before the one that there was.
    let new = ClusterCa::make().unwrap();
    for (name, new) in [("ca.pem", new.certificates()), ("ca.key", new.keys())] {
        let path = world.path().join(name);
        let both = format!("{new}{}", std::fs::read_to_string(&path).unwrap());
        std::fs::write(path.with_extension("tmp"), both).unwrap();
        std::fs::rename(path.with_extension("tmp"), path).unwrap();
    }
    world.start_another();
    let [old, new] = [0, 1].map(|number| world.nodes[number].peers.clone());
    assert_ne!(new.credential(&alice), before);
    eventually("the first node follows", || old.credential(&alice) == new.credential(&alice)).await;
}
