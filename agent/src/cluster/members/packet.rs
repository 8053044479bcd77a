//! What members say to each other.

use foca::{Codec as _, Header, PostcardCodec};
use serde::{Deserialize, Serialize};

use super::identity::Identity;

/// A datagram, before it is sealed. The order of the variants is the protocol: new ones go to the end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Packet<'a> {
    /// SWIM's own: probes, gossip, joins.
    Swim(#[serde(borrow)] &'a [u8]),
    /// To an address: who is there? What is answered is `Here`.
    Knock(Identity),
    /// The sender is.
    Here(Identity),
    /// To one that claims to be a node which is known in a later life: that life.
    Known(Identity),
    /// Who comes after this node's number in your roll? What is answered is a `Page`.
    Roll { from: Identity, after: [u8; 16] },
    /// The next so many of the roll.
    Page(Page),
}

/// What `Packet::Swim` costs besides the bytes in it: the variant, and a length below 16 KiB.
pub(super) const SWIM_OVERHEAD: usize = 3;

/// A part of the roll of members that are up, in the order of their nodes' numbers, and from the highest on to the
/// lowest.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Page {
    pub(super) from: Identity,
    /// The sender has been a member for long enough to own something, as far as it knows.
    pub(super) settled: bool,
    pub(super) entries: Vec<Entry>,
}

/// A member on a page.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) member: foca::Member<Identity>,
    /// The sender has known it for long enough to let it own something.
    pub(super) settled: bool,
}

impl Packet<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Every part serialises, and the vector grows.
        postcard::to_allocvec(self).unwrap_or_default()
    }
}

impl Page {
    /// One that fits into a packet of `max` bytes, with as many of `entries` as there is room for.
    pub(super) fn fit(from: Identity, settled: bool, entries: impl Iterator<Item = Entry>, max: usize) -> Self {
        let size = |entry: &Entry| postcard::to_allocvec(entry).map_or(usize::MAX, |bytes| bytes.len());
        let mut page = Self { from, settled, entries: Vec::new() };
        // The variant of the packet, and two bytes for the number of entries.
        let head = postcard::to_allocvec(&page).map_or(usize::MAX, |bytes| bytes.len());
        let mut room = max.saturating_sub(head.saturating_add(3));
        for entry in entries {
            let Some(left) = room.checked_sub(size(&entry)) else { break };
            room = left;
            page.entries.push(entry);
        }
        page
    }
}

/// The sender of a SWIM packet, and whom its updates name; as far as it can be read.
pub(super) fn peek(mut swim: &[u8]) -> Option<(Header<Identity>, Vec<foca::Member<Identity>>)> {
    let header: Header<Identity> = PostcardCodec.decode_header(&mut swim).ok()?;
    let mut updates = Vec::new();
    if let Some((count, mut rest)) = swim.split_first_chunk::<2>() {
        for _ in 0..u16::from_be_bytes(*count) {
            updates.push(PostcardCodec.decode_member(&mut rest).ok()?);
        }
    }
    Some((header, updates))
}
