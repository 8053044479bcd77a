//! A stored blob rots while it is read: the reply goes on from elsewhere, and the blob is made good.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::*;

fn stored(node: &Node) -> PathBuf {
    node.dir.path().join("blobs/sha256").join(node.wanted.digest.hex())
}

fn flip(node: &Node, at: u64) {
    let file = std::fs::File::options().write(true).open(stored(node)).unwrap();
    file.write_all_at(&[!node.blob[at as usize]], at).unwrap();
}

/// Until the store gives all of it, right, from a file that isn't the rotten one.
async fn made_good(node: &Node) {
    node.stored().await;
    let blob = node.store.blob(&node.wanted.digest).await.unwrap();
    let (mut reader, mut bytes) = (blob.reader(0..blob.size()), Vec::new());
    while let Some(piece) = reader.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    assert!(bytes == node.blob);
    assert_eq!(std::fs::read(stored(node)).unwrap(), node.blob);
}

#[tokio::test]
async fn in_mid_reply() {
    let blob = blob(8);
    let registry = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&registry]);
    node.whole().await.unwrap();
    node.stored().await;
    let mut reader = node.fetch(0).await.unwrap().read();
    let mut read = Vec::new();
    while read.len() < 2 * MIB as usize {
        read.extend_from_slice(&reader.next().await.unwrap().unwrap());
    }
    flip(&node, 5 * MIB + 3);
    while let Some(piece) = reader.next().await.unwrap() {
        read.extend_from_slice(&piece);
    }
    assert!(read == blob, "the flipped byte was sent");
    made_good(&node).await;
    assert!(registry.sent() < 20 * MIB, "it was fetched once more, and no byte of it twice");
}

/// One that is late must not take away what was made good meanwhile.
#[tokio::test]
async fn many_find_it_at_their_own_time() {
    let blob = blob(8);
    let registry = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&registry]);
    node.whole().await.unwrap();
    node.stored().await;
    let mut late = node.fetch(0).await.unwrap().read();
    let first = late.next().await.unwrap().unwrap();
    flip(&node, 3 * MIB);
    node.whole().await.unwrap();
    node.part(2 * MIB..4 * MIB).await.unwrap();
    made_good(&node).await;
    let asked = registry.asked().len();
    let mut read = first.to_vec();
    while let Some(piece) = late.next().await.unwrap() {
        read.extend_from_slice(&piece);
    }
    assert!(read == blob);
    assert_eq!(registry.asked().len(), asked, "the late one went on from what was made good");
    made_good(&node).await;
}

/// What is containerd's too is damaged there as well: ours becomes a copy of its own again.
#[tokio::test]
async fn in_what_containerd_has_too() {
    let blob = blob(4);
    let registry = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&registry]);
    let theirs = tempfile::tempdir_in(node.dir.path().parent().unwrap()).unwrap();
    let path = theirs.path().join("blob");
    std::fs::write(&path, &blob).unwrap();
    let found = crate::store::Found { path: path.clone(), size: 4 * MIB, media_type: None, sources: Vec::new() };
    node.store.adopt(&node.wanted.digest, found).await.unwrap();
    let place = &node.wanted.place;
    let anybody = crate::image::Access::Anonymous;
    node.store.delivered(&node.wanted.digest, &place.registry, &place.repository, anybody).await;
    flip(&node, 3 * MIB + 9);
    assert_ne!(std::fs::read(&path).unwrap(), blob, "they are one file");
    node.whole().await.unwrap();
    made_good(&node).await;
}

#[tokio::test]
async fn with_no_other_source_the_reply_ends_short() {
    let blob = blob(8);
    let registry = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&registry]);
    node.whole().await.unwrap();
    node.stored().await;
    registry.always(Manner { status: Some(503), ..Manner::default() });
    flip(&node, 3 * MIB);
    assert_eq!(node.whole().await, Err(EndedShort), "what went out was right");
}
