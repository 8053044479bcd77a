//! What comes little by little.

use std::time::Instant;

use super::*;
use crate::image::Access;

/// How many pieces there may be of `bytes` that took so long: each has 64 KiB or took 100 ms, but the first, the last that
/// goes out unproven, and the last.
fn most(bytes: u64, took: Duration) -> u128 {
    3 + u128::from(bytes / (64 << 10)) + took.as_millis() / 100
}

#[tokio::test]
async fn what_comes_little_by_little_goes_on_in_larger_pieces_to_containerd_and_to_a_peer() {
    // More than is held back until it is proven.
    let blob = blob(6);
    let upstream = Registry::start(&blob).await;
    upstream.always(Manner { rate: Some(6 * MIB), piece: Some(4 << 10), ..Manner::default() });
    let node = Node::new(&blob, &[&upstream]);
    let mut reader = node.fetch(0).await.unwrap().read();
    let Wanted { place, digest, .. } = &node.wanted;
    let mut shared = node.pull.share(digest, &place.registry, Access::Anonymous, 0, None).await.unwrap();
    let begun = Instant::now();
    let to_containerd = async {
        let (mut got, mut pieces) = (Vec::new(), 0);
        while let Some(bytes) = reader.next().await.unwrap() {
            got.extend_from_slice(&bytes);
            pieces += 1;
        }
        (got == blob, pieces, begun.elapsed())
    };
    let to_peer = async {
        let (mut got, mut pieces) = (Vec::new(), 0);
        while let Some(bytes) = shared.next().await.unwrap() {
            got.extend_from_slice(&bytes);
            pieces += 1;
        }
        (got == blob, pieces, begun.elapsed())
    };
    for (is_right, pieces, took) in <[_; 2]>::from(tokio::join!(to_containerd, to_peer)) {
        assert!(is_right);
        assert!(pieces <= most(6 * MIB, took), "{pieces} pieces in {took:?}");
    }
}
