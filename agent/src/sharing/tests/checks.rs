//! One node checks an image, and all are told what it found.

use std::time::Duration;

use super::node::World;
use crate::cluster::checks::{Finding, Outcome, Standing, Watched};
use crate::image::Digest;
use crate::peers::Granted;

fn watched(findings: Vec<Finding>) -> Watched {
    let image = "reg.test/acme/app:v1".parse().unwrap();
    Watched { image, target: Digest::of(b"index"), is_whole: true, is_checked: true, findings }
}

/// What the image's owners say to a node, as soon as they answer: a busy machine may take longer than they are given.
async fn told(world: &World, node: usize, findings: Vec<Finding>) -> Standing {
    loop {
        let standings = world.nodes[node].peers.watch(vec![watched(findings.clone())]).await;
        if let [Some(standing)] = &standings[..] {
            return standing.clone();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_found_is_told_to_all() {
    let world = World::new(4);
    assert!(told(&world, 0, Vec::new()).await.is_yours);
    for node in 1..4 {
        let standing = told(&world, node, Vec::new()).await;
        assert_eq!((standing.is_yours, standing.copies), (false, u32::try_from(node).unwrap() + 1));
    }
    let finding = Finding {
        upstream: "https://reg.test".to_owned(),
        outcome: Outcome::NotFound,
        age: Duration::from_secs(5),
        available: None,
        digest: None,
        remark: Some("gone".to_owned()),
    };
    told(&world, 0, vec![finding.clone()]).await;
    let heard = told(&world, 3, Vec::new()).await.findings;
    assert_eq!((heard.len(), heard[0].outcome, heard[0].remark.as_deref()), (1, Outcome::NotFound, Some("gone")));
    assert!(heard[0].age >= finding.age);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_grants_nothing_yet() {
    let world = World::new(3);
    for node in &world.nodes {
        let granted = node.peers.grant_checks(&"reg.test".parse().unwrap(), 1).await;
        assert!(matches!(granted, Granted::Later(_)), "{granted:?}");
    }
    // Nor does it when the one before has nothing to hand over.
    world.are_up(&[0]);
    let granted = world.nodes[0].peers.grant_checks(&"reg.test".parse().unwrap(), 1).await;
    assert!(matches!(granted, Granted::Later(_)), "{granted:?}");
}
