//! Upstreams that sent wrong bytes to one node, and what the others hear of it.

use super::node::World;
use crate::cluster::directory::bucket_of_upstream;

#[tokio::test(flavor = "multi_thread")]
async fn what_one_found_of_an_upstream_is_known_to_whoever_asks() {
    let world = World::new(5);
    let name = "mirror.test:443";
    assert!(!world.nodes[1].peers.is_suspect(name).await);
    world.nodes[0].peers.tell_suspect(name).await;
    for node in &world.nodes {
        assert!(node.peers.is_suspect(name).await);
        assert!(!node.peers.is_suspect("other.test:443").await);
    }
    // The second owner of its name knows it too.
    let first = world.ring().owners(bucket_of_upstream(name)).first.unwrap();
    let (gone, others): (Vec<_>, Vec<_>) = world.nodes.iter().partition(|node| node.node == first);
    gone[0].kill();
    assert!(others[0].peers.is_suspect(name).await);
}
