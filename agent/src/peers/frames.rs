//! gRPC's frames, as far as a stream of [`ReadReply`]s needs them: by hand, so that the bytes of blobs are copied neither
//! on the way out nor on the way in.
//!
//! On the wire it is what generated code writes and reads: a byte that says "not compressed", four bytes of length, the
//! message. Of a message with data everything up to its bytes is made here, and the bytes follow as they are; on the
//! way in they are cut out of the buffers that they came in. A message with data that some other implementation wrote
//! in another order is read too, by copying it.

use std::collections::VecDeque;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use larder_proto::peers::{ReadReply, read_reply};
use prost::Message;
use prost::encoding::{WireType, decode_varint, encode_varint, encoded_len_varint};

/// The bytes of blobs in one message, at most.
pub const MOST_DATA: usize = 1 << 20;

/// The longest message: data, and what stands around it; or a beat with its path.
const MOST_MESSAGE: usize = MOST_DATA + 4096;
/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// All that stands before the bytes of a message with data, at most: two tags and lengths, and the checksum.
const MOST_DATA_HEAD: usize = 20;

/// `ReadReply.data`, `Data.checksum` and `Data.bytes`, each with its wire type.
const DATA: u8 = 2 << 3 | WireType::LengthDelimited as u8;
const CHECKSUM: u8 = 1 << 3 | WireType::ThirtyTwoBit as u8;
const BYTES: u8 = 2 << 3 | WireType::LengthDelimited as u8;
/// The checksum with its tag.
const CHECKSUM_LEN: usize = 5;

/// A message as gRPC sends it.
#[must_use]
pub fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + len);
    put_prefix(&mut frame, len);
    // The room is there.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// What stands before `bytes` in a message that carries them; they follow as they are. At most [`MOST_DATA`] of them.
#[must_use]
pub fn before(bytes: &[u8]) -> Bytes {
    let len = bytes.len() as u64;
    let data = CHECKSUM_LEN + 1 + encoded_len_varint(len) + bytes.len();
    let message = 1 + encoded_len_varint(data as u64) + data;
    let mut frame = BytesMut::with_capacity(PREFIX + MOST_DATA_HEAD);
    put_prefix(&mut frame, message);
    frame.put_u8(DATA);
    encode_varint(data as u64, &mut frame);
    frame.put_u8(CHECKSUM);
    frame.put_u32_le(crc32fast::hash(bytes));
    frame.put_u8(BYTES);
    encode_varint(len, &mut frame);
    frame.freeze()
}

fn put_prefix(frame: &mut BytesMut, len: usize) {
    frame.put_u8(0);
    // At most `MOST_MESSAGE`.
    frame.put_u32(len as u32);
}

/// One message of a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Bytes of a blob, in the pieces that they came in. Their checksum holds.
    Data(VecDeque<Bytes>),
    /// Anything else.
    Other(ReadReply),
}

/// What is no stream of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It makes no sense.
    Senseless(&'static str),
    /// The checksum of some bytes doesn't hold.
    Damaged,
}

/// Finds the messages in what a connection brings. Holds one message at most, and the buffers that it came in.
#[derive(Debug, Default)]
pub struct Frames {
    /// Not yet taken.
    held: VecDeque<Bytes>,
    len: usize,
    /// The length of the message that comes next, once its prefix is read.
    awaited: Option<usize>,
}

impl Frames {
    /// What came.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.held.push_back(bytes);
        }
    }

    /// Whether nothing of a message is left over.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0 && self.awaited.is_none()
    }

    /// The next message; `None` until more comes.
    ///
    /// # Errors
    /// When what came is no message, or bytes don't have their checksum. Nothing more can be read then.
    pub fn message(&mut self) -> Result<Option<Part>, Malformed> {
        let len = match self.awaited {
            Some(len) => len,
            None if self.len < PREFIX => return Ok(None),
            None => {
                let mut prefix = [0; PREFIX];
                self.copy_to(&mut prefix);
                let [compressed, len @ ..] = prefix;
                let len = u32::from_be_bytes(len) as usize;
                if compressed != 0 || len > MOST_MESSAGE {
                    return Err(Malformed::Senseless("a message that is compressed or too long"));
                }
                *self.awaited.insert(len)
            }
        };
        if self.len < len {
            return Ok(None);
        }
        self.awaited = None;
        match self.data_head(len) {
            Some((head, checksum)) => {
                self.skip(head);
                let pieces = self.take(len - head);
                let mut hasher = crc32fast::Hasher::new();
                pieces.iter().for_each(|piece| hasher.update(piece));
                if hasher.finalize() == checksum { Ok(Some(Part::Data(pieces))) } else { Err(Malformed::Damaged) }
            }
            None => self.copied(len).map(Some),
        }
    }

    /// How long what stands before the bytes of a message with data is, and their checksum, where the message of `len`
    /// bytes that comes next is written as we write it.
    fn data_head(&self, len: usize) -> Option<(usize, u32)> {
        let mut start = [0; MOST_DATA_HEAD];
        let known = self.peek(&mut start[..len.min(MOST_DATA_HEAD)]);
        let mut rest = &start[..known];
        let data = field(&mut rest, DATA)?;
        let is_all = data == rest.len() + (len - known);
        if !is_all || rest.len() < CHECKSUM_LEN || rest.get_u8() != CHECKSUM {
            return None;
        }
        let checksum = rest.get_u32_le();
        let bytes = field(&mut rest, BYTES)?;
        (bytes == rest.len() + (len - known)).then(|| (known - rest.len(), checksum))
    }

    /// The message of `len` bytes that comes next, by copying it.
    fn copied(&mut self, len: usize) -> Result<Part, Malformed> {
        let mut whole = vec![0; len];
        self.copy_to(&mut whole);
        let message = ReadReply::decode(Bytes::from(whole)).map_err(|_| Malformed::Senseless("no reply"))?;
        let Some(read_reply::Part::Data(data)) = message.part else { return Ok(Part::Other(message)) };
        if crc32fast::hash(&data.bytes) != data.checksum {
            return Err(Malformed::Damaged);
        }
        Ok(Part::Data(VecDeque::from([data.bytes])))
    }

    /// Copies what comes next, and leaves it there; how much there was.
    fn peek(&self, to: &mut [u8]) -> usize {
        let mut filled = 0;
        for piece in &self.held {
            let len = piece.len().min(to.len() - filled);
            to[filled..filled + len].copy_from_slice(&piece[..len]);
            filled += len;
        }
        filled
    }

    fn copy_to(&mut self, to: &mut [u8]) {
        let filled = self.peek(to);
        self.skip(filled);
    }

    fn skip(&mut self, len: usize) {
        self.take(len);
    }

    /// The next `len` bytes, which are there.
    fn take(&mut self, len: usize) -> VecDeque<Bytes> {
        let (mut taken, mut left) = (VecDeque::new(), len);
        while let Some(mut piece) = self.held.pop_front() {
            if piece.len() > left {
                if left > 0 {
                    taken.push_back(piece.split_to(left));
                }
                self.held.push_front(piece);
                left = 0;
                break;
            }
            left -= piece.len();
            taken.push_back(piece);
        }
        self.len -= len - left;
        taken
    }
}

/// The length of a field that begins with `tag`.
fn field(rest: &mut &[u8], tag: u8) -> Option<usize> {
    if rest.first() != Some(&tag) {
        return None;
    }
    rest.advance(1);
    decode_varint(rest).ok().and_then(|len| usize::try_from(len).ok())
}

#[cfg(test)]
mod tests {
    use larder_proto::peers::{Beat, Data, Hop};
    use proptest::prelude::*;

    use super::*;

    fn reply(part: read_reply::Part) -> ReadReply {
        ReadReply { part: Some(part) }
    }

    /// Reads `wire` in pieces that end at `cuts`.
    fn read(wire: &[u8], cuts: &[usize]) -> Result<Vec<Part>, Malformed> {
        let (mut frames, mut parts, mut from) = (Frames::default(), Vec::new(), 0);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).chain([wire.len()]).collect();
        cuts.sort_unstable();
        for to in cuts {
            frames.push(Bytes::copy_from_slice(&wire[from..to]));
            from = to;
            while let Some(part) = frames.message()? {
                parts.push(match part {
                    Part::Data(pieces) => Part::Data(VecDeque::from([Bytes::from(Vec::from(pieces).concat())])),
                    other => other,
                });
            }
        }
        assert!(frames.is_empty());
        Ok(parts)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            data in proptest::collection::vec(any::<u8>(), 1..70_000),
            frontier in any::<u64>(),
            cuts in proptest::collection::vec(any::<usize>(), 0..8),
        ) {
            let path = vec![Hop { node: vec![1; 16], ticket: None, frontier, rate: 7 }];
            let beat = reply(read_reply::Part::Beat(Beat { path }));
            let wire = [before(&data), data.clone().into(), framed(&beat), before(&data[..1]), data[..1].to_vec().into()];
            let parts = read(&wire.concat(), &cuts).unwrap();
            let bytes = |data: &[u8]| Part::Data(VecDeque::from([Bytes::copy_from_slice(data)]));
            prop_assert_eq!(parts, vec![bytes(&data), Part::Other(beat), bytes(&data[..1])]);
        }

        #[test]
        fn anything_is_read_without_a_panic(wire in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames::default();
            // Mostly of a length that fits, so that something is decoded.
            frames.push(Bytes::from([&[0, 0, 0, 0, wire.len().saturating_sub(1) as u8], wire.as_slice()].concat()));
            while let Ok(Some(_)) = frames.message() {}
        }
    }

    #[test]
    fn it_is_what_generated_code_writes_and_reads() {
        let data = vec![7_u8; 300_000];
        let message =
            reply(read_reply::Part::Data(Data { checksum: crc32fast::hash(&data), bytes: data.clone().into() }));
        let ours = [before(&data), data.clone().into()].concat();
        assert_eq!(framed(&message), ours);
        assert_eq!(ReadReply::decode(&ours[PREFIX..]).unwrap(), message);
    }

    #[test]
    fn another_order_of_fields_is_read_by_copying() {
        let data = [9_u8; 100];
        let mut inner = vec![BYTES, 100];
        inner.extend_from_slice(&data);
        inner.push(CHECKSUM);
        inner.extend_from_slice(&crc32fast::hash(&data).to_le_bytes());
        let mut wire = vec![0, 0, 0, 0, inner.len() as u8 + 2, DATA, inner.len() as u8];
        wire.extend_from_slice(&inner);
        assert_eq!(read(&wire, &[]), Ok(vec![Part::Data(VecDeque::from([Bytes::copy_from_slice(&data)]))]));
    }

    #[test]
    fn a_wrong_checksum_is_found() {
        let data = [1_u8; 5000];
        let mut wire = [before(&data), Bytes::copy_from_slice(&data)].concat();
        *wire.last_mut().unwrap() ^= 1;
        assert_eq!(read(&wire, &[17]), Err(Malformed::Damaged));
    }

    #[test]
    fn a_message_without_bound_is_not_waited_for() {
        let mut frames = Frames::default();
        frames.push(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]));
        assert!(matches!(frames.message(), Err(Malformed::Senseless(_))));
    }
}
