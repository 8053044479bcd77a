//! What each node says of the images that it runs.

use std::sync::Arc;

use larder_proto::peers::{ImageSeen, ImagesReply};
use tokio::time::timeout;

use super::node::{PATIENCE, World};
use crate::image::NodeId;
use crate::sharing::Told;

/// An image that is called by the node's number.
pub(super) fn told(node: NodeId) -> Told {
    Arc::new(move || {
        let image = ImageSeen { name: format!("reg.test/{node}"), ..ImageSeen::default() };
        ImagesReply { images: vec![image], left_out: 0, complete: true }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_is_asked_and_who_is_silent_is_named() {
    let world = World::new(4);
    let all: Vec<NodeId> = world.nodes.iter().map(|node| node.node).collect();
    let heard = timeout(PATIENCE, world.nodes[0].peers.images()).await.unwrap();
    let mut names: Vec<String> = heard.replies.iter().map(|(_, reply)| reply.images[0].name.clone()).collect();
    names.sort();
    let mut others: Vec<String> = all[1..].iter().map(|node| format!("reg.test/{node}")).collect();
    others.sort();
    assert_eq!((names, heard.silent.len()), (others, 0), "{:?}", heard.silent);

    world.nodes[2].kill();
    // Its connections break a moment later.
    let asked = async {
        loop {
            let heard = world.nodes[0].peers.images().await;
            if heard.replies.len() < 3 {
                return heard;
            }
        }
    };
    let heard = timeout(PATIENCE, asked).await.unwrap();
    assert_eq!(heard.replies.len(), 2);
    assert_eq!(heard.silent.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [all[2]]);
    // No pull suffers for it: the others are asked as before.
    assert_eq!(timeout(PATIENCE, world.nodes[0].peers.images()).await.unwrap().replies.len(), 2);
}
