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
    /// Whom do you know that I don't? What is answered is a `Page`.
    Roll {
        from: Identity,
        /// Over the members of each range, two bytes each.
        sums: &'a [u8],
    },
    /// Some of them.
    Page(Page),
}

/// What `Packet::Swim` costs besides the bytes in it: the variant, and a length below 16 KiB.
pub(super) const SWIM_OVERHEAD: usize = 3;

/// A part of the roll of members that are up. Empty where both know the same.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Page {
    pub(super) from: Identity,
    /// The sender has been a member for long enough to own something, as far as it knows.
    pub(super) settled: bool,
    /// A bit for each range of which this is everybody.
    pub(super) covered: [u8; 16],
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
    /// One that fits into a packet of `max` bytes, with as many of the ranges as there is room for.
    pub(super) fn fit(
        from: Identity,
        settled: bool,
        ranges: impl Iterator<Item = (usize, Vec<Entry>)>,
        max: usize,
    ) -> Self {
        let size = |entry: &Entry| postcard::to_allocvec(entry).map_or(usize::MAX, |bytes| bytes.len());
        let mut page = Self { from, settled, covered: [0; _], entries: Vec::new() };
        // The variant of the packet, and two bytes for the number of entries.
        let head = postcard::to_allocvec(&page).map_or(usize::MAX, |bytes| bytes.len());
        let mut room = max.saturating_sub(head.saturating_add(3));
        for (range, entries) in ranges {
            let before = page.entries.len();
            let mut fits = true;
            for entry in entries {
                let left = room.checked_sub(size(&entry));
                fits = left.is_some();
                let Some(left) = left else { break };
                room = left;
                page.entries.push(entry);
            }
            if !fits {
                // A part of a range is better than nothing.
                if before > 0 {
                    page.entries.truncate(before);
                }
                break;
            }
            page.covered[range / 8] |= 1 << (range % 8);
        }
        page
    }

    /// Is everybody of that range here whom the sender knows?
    pub(super) const fn covers(&self, range: usize) -> bool {
        self.covered[range / 8] & 1 << (range % 8) != 0
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
