//! Two versions side by side.

use bytes::Bytes;
use larder_proto::peers::{Beat, Data, Hop, Parting, parting};
use prost::Message;
use prost::encoding::encode_varint;

use super::impostor::{Impostor, head};
use super::node::{World, content};
use crate::image::Digest;
use crate::peers::Parted;

/// A field of a number that nobody has given a meaning yet: a piece of text.
const NEW: [u8; 6] = [0x82, 0x40, 0x03, b'n', b'e', b'w'];

/// A message of a stream, as gRPC frames it.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

/// One that has a part of this number, which says more than we know.
fn part(number: u8, part: &impl Message) -> Vec<u8> {
    let part = [&part.encode_to_vec()[..], &NEW].concat();
    let mut message = vec![number << 3 | 2];
    encode_varint(part.len() as u64, &mut message);
    message.extend(part);
    framed(&message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_peer_is_read_as_far_as_it_is_understood() {
    let world = World::new(2);
    let bytes = content(5, 100_000);
    let digest = Digest::of(&bytes);
    let unknown = framed(&NEW);
    let hop = Hop { node: vec![9; 16], ticket: None, frontier: 1, rate: 1 };
    let half = |bytes: &[u8]| Data { checksum: crc32fast::hash(bytes), bytes: Bytes::copy_from_slice(bytes) };
    let replies = [
        unknown.clone(),
        part(3, &Beat { path: vec![hop] }),
        part(1, &head(bytes.len())),
        unknown.clone(),
        part(2, &half(&bytes[..50_000])),
        unknown.clone(),
        part(2, &half(&bytes[50_000..])),
        unknown,
        part(4, &Parting { why: parting::Why::Held.into(), ..Parting::default() }),
    ];
    let newer = Impostor::start(&world, digest, replies.concat());
    let (peer, _follow) = world.peer_for(digest).await;
    assert_eq!(peer.node(), newer.node);
    let mut stream = peer.open(0, None).await.unwrap();
    assert_eq!((stream.head().size, stream.head().whole), (bytes.len() as u64, true));
    let mut got = Vec::new();
    while let Some(piece) = stream.frame().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert_eq!(got, bytes);
    assert_eq!(stream.parted().await, Parted::Held);
}
