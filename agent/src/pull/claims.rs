//! Which bytes are fetched next, and by whom.
//!
//! A claim is a run of bytes that are missing and that one worker has taken upon itself. Claims never overlap, and never
//! cover bytes that are there: so whoever stays within its claim fetches nothing twice. A claim begins where its first
//! chunk stands and ends where a chunk begins, or with the blob, so that no chunk is ever filled by two.

use std::ops::Range;

use crate::store::CHUNK;

/// So close ahead of a worker, in bytes, that waiting for it takes less time than another request.
pub(super) const NEAR: u64 = 2 << 20;

/// The claims on one blob. The map of what is missing is passed in: for an offset, the first run of missing bytes at or
/// after the beginning of the offset's chunk, as [`Ingest::gap`](crate::store::Ingest::gap) has it.
#[derive(Debug, Default)]
pub(super) struct Claims {
    taken: Vec<Claim>,
    next: u64,
}

/// Names one claim as long as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClaimId(u64);

#[derive(Debug)]
struct Claim {
    id: ClaimId,
    /// The next byte to come; never empty.
    left: Range<u64>,
}

impl Claims {
    /// Takes the first run of at most `most` bytes at or after `from`'s chunk that is missing and that nobody has taken,
    /// and that begins before `upto`. It ends there, or with the chunk in which that lies.
    pub(super) fn take(
        &mut self,
        gap: impl Fn(u64) -> Option<Range<u64>>,
        Range { start: mut from, end: upto }: Range<u64>,
        most: u64,
    ) -> Option<ClaimId> {
        loop {
            let mut gap = gap(from).filter(|gap| gap.end > from && gap.start < upto)?;
            match self.covering(gap.start) {
                Some(claim) => from = self.taken[claim].left.end,
                None => {
                    gap.end = gap.end.min(chunk_after(upto));
                    return Some(self.add(gap, most));
                }
            }
        }
    }

    /// Sees to it that the byte at `at` comes soon, for a reader that waits for it, and then some more up to `end`: what
    /// is missing of the next `most` bytes is taken, from the claim that has it if that is far from there. `None` when it
    /// is there, or on its way: at most `near` ahead of a worker, which is [`NEAR`] or more.
    pub(super) fn take_wanted(
        &mut self,
        gap: impl Fn(u64) -> Option<Range<u64>>,
        Range { start: at, end }: Range<u64>,
        most: u64,
        near: u64,
    ) -> Option<ClaimId> {
        let horizon = end.min(at.saturating_add(most));
        let mut from = at;
        while from < horizon {
            let missing = gap(from)?;
            if missing.start >= horizon {
                return None;
            }
            from = from.max(missing.start);
            let Some(index) = self.covering(missing.start) else {
                return Some(self.add(missing.start..missing.end.min(chunk_after(horizon)), most));
            };
            let claim = &mut self.taken[index];
            if from.saturating_sub(claim.left.start) > near.max(NEAR) {
                // What lies behind the part that is taken away is free again.
                let chunk = from / CHUNK * CHUNK;
                let behind = chunk..claim.left.end.min(chunk_after(horizon));
                claim.left.end = chunk;
                return Some(self.add(behind, most));
            }
            if claim.left.end - claim.left.start > NEAR {
                // Another one is soon enough when this one is nearly through.
                return None;
            }
            from = claim.left.end;
        }
        None
    }

    /// So many bytes of a claim have come. Returns whether that was all of it: then it stands no longer.
    pub(super) fn advance(&mut self, id: ClaimId, bytes: u64) -> bool {
        let Some(index) = self.taken.iter().position(|claim| claim.id == id) else { return true };
        let left = &mut self.taken[index].left;
        left.start = left.end.min(left.start + bytes);
        let through = left.is_empty();
        if through {
            self.taken.swap_remove(index);
        }
        through
    }

    /// Gives a claim back.
    pub(super) fn release(&mut self, id: ClaimId) {
        self.taken.retain(|claim| claim.id != id);
    }

    /// What is left of a claim; empty when it stands no longer.
    pub(super) fn left(&self, id: ClaimId) -> Range<u64> {
        self.taken.iter().find(|claim| claim.id == id).map_or(0..0, |claim| claim.left.clone())
    }

    /// Leaves each claim at most `most` bytes, to the end of a chunk: the rest is free for others.
    pub(super) fn cap(&mut self, most: u64) {
        for Claim { left, .. } in &mut self.taken {
            left.end = left.end.min(chunk_after(left.start.saturating_add(most)));
        }
    }

    /// Ends a claim before `upto`, or with the chunk in which that lies. `false` when nothing is left of it then.
    pub(super) fn end_at(&mut self, id: ClaimId, upto: u64) -> bool {
        let upto = chunk_after(upto);
        let Some(claim) = self.taken.iter_mut().find(|claim| claim.id == id && claim.left.start < upto) else {
            return false;
        };
        claim.left.end = claim.left.end.min(upto);
        true
    }

    /// Has a claim go on to where the next one begins, or something is there.
    pub(super) fn extend(&mut self, gap: impl Fn(u64) -> Option<Range<u64>>, id: ClaimId) {
        let start = self.left(id).start;
        let next = self.taken.iter().map(|claim| claim.left.start).filter(|&other| other > start).min();
        let end = gap(start).map_or(0, |gap| gap.end).min(next.unwrap_or(u64::MAX));
        if let Some(claim) = self.taken.iter_mut().find(|claim| claim.id == id) {
            claim.left.end = claim.left.end.max(end);
        }
    }

    fn covering(&self, at: u64) -> Option<usize> {
        self.taken.iter().position(|claim| claim.left.contains(&at))
    }

    /// Takes the first `most` bytes of a run whose first byte nobody has taken.
    fn add(&mut self, run: Range<u64>, most: u64) -> ClaimId {
        let next = self.taken.iter().map(|claim| claim.left.start).filter(|&start| start > run.start).min();
        let end = run.end.min(next.unwrap_or(u64::MAX)).min(chunk_after(run.start.saturating_add(most)));
        let id = ClaimId(self.next);
        self.next += 1;
        self.taken.push(Claim { id, left: run.start..end });
        id
    }
}

/// The end of the chunk that `at` ends in.
pub(super) const fn chunk_after(at: u64) -> u64 {
    match at.checked_next_multiple_of(CHUNK) {
        Some(end) => end,
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    /// What an ingest knows: how far each chunk stands.
    struct Blob {
        size: u64,
        chunks: RefCell<Vec<u64>>,
    }

    impl Blob {
        fn new(size: u64) -> Self {
            Self { size, chunks: RefCell::new(vec![0; size.div_ceil(CHUNK) as usize]) }
        }

        fn gap(&self, offset: u64) -> Option<Range<u64>> {
            let chunks = self.chunks.borrow();
            let whole = |i: usize| chunks[i] == CHUNK.min(self.size - i as u64 * CHUNK);
            let first = ((offset / CHUNK) as usize..chunks.len()).find(|&i| !whole(i))?;
            let end = (first + 1..chunks.len()).find(|&i| chunks[i] > 0).map_or(self.size, |i| i as u64 * CHUNK);
            Some(first as u64 * CHUNK + chunks[first]..end)
        }

        /// Bytes arrive; each must be the next one of its chunk.
        fn write(&self, mut at: u64, end: u64) {
            let mut chunks = self.chunks.borrow_mut();
            while at < end {
                let i = (at / CHUNK) as usize;
                let to = end.min((i as u64 + 1) * CHUNK);
                assert_eq!(chunks[i], at % CHUNK, "each byte comes once, and after the one before it");
                chunks[i] += to - at;
                at = to;
            }
        }
    }

    const MIB: u64 = 1 << 20;
    const ALL: Range<u64> = 0..u64::MAX;

    #[test]
    fn alone_it_takes_everything() {
        let blob = Blob::new(10 * MIB + 3);
        let mut claims = Claims::default();
        let all = claims.take(|at| blob.gap(at), ALL, u64::MAX).unwrap();
        assert_eq!(claims.left(all), 0..blob.size);
        assert_eq!(claims.take(|at| blob.gap(at), ALL, u64::MAX), None);
        assert!(claims.advance(all, blob.size));
    }

    #[test]
    fn pieces_follow_each_other() {
        let blob = Blob::new(10 * MIB + 3);
        blob.write(0, 5);
        let mut claims = Claims::default();
        let mut take = || {
            let id = claims.take(|at| blob.gap(at), ALL, 4 * MIB)?;
            Some(claims.left(id))
        };
        assert_eq!(take(), Some(5..5 * MIB));
        assert_eq!(take(), Some(5 * MIB..9 * MIB));
        assert_eq!(take(), Some(9 * MIB..blob.size));
        assert_eq!(take(), None);
    }

    #[test]
    fn a_part_ends_where_it_is_told() {
        let blob = Blob::new(10 * MIB + 3);
        blob.write(0, 5);
        let mut claims = Claims::default();
        let gap = |at| blob.gap(at);
        let first = claims.take(gap, 0..4 * MIB, u64::MAX).unwrap();
        assert_eq!(claims.left(first), 5..4 * MIB);
        assert_eq!(claims.take(gap, 0..4 * MIB, u64::MAX), None);
        let next = claims.take(gap, 0..5 * MIB + 1, u64::MAX).unwrap();
        assert_eq!(claims.left(next), 4 * MIB..6 * MIB, "no chunk is filled by two");
        assert!(claims.end_at(next, 5 * MIB));
        assert_eq!(claims.left(next), 4 * MIB..5 * MIB);
        assert!(!claims.end_at(next, 4 * MIB));
        assert!(claims.end_at(first, u64::MAX));
    }

    #[test]
    fn what_is_wanted_far_ahead_is_taken_from_who_has_it() {
        let blob = Blob::new(100 * MIB);
        let mut claims = Claims::default();
        let all = claims.take(|at| blob.gap(at), ALL, u64::MAX).unwrap();
        let gap = |at| blob.gap(at);
        assert_eq!(claims.take_wanted(gap, MIB..50 * MIB, 4 * MIB, NEAR), None, "it comes in a moment");
        assert_eq!(claims.take_wanted(gap, 20 * MIB..50 * MIB, 4 * MIB, 20 * MIB), None, "at such a rate too");
        let far = claims.take_wanted(gap, 50 * MIB + 7..100 * MIB, 4 * MIB, NEAR).unwrap();
        assert_eq!(claims.left(far), 50 * MIB..54 * MIB);
        assert_eq!(claims.left(all), 0..50 * MIB);
        assert_eq!(claims.take_wanted(gap, 50 * MIB + 7..100 * MIB, 4 * MIB, NEAR), None);
        let closed = claims.take_wanted(gap, 70 * MIB + 7..70 * MIB + 9, 4 * MIB, NEAR).unwrap();
        assert_eq!(claims.left(closed), 70 * MIB..71 * MIB, "no more than the range needs");
        // The reader reads on, and the worker is nearly through.
        blob.write(50 * MIB, 53 * MIB);
        claims.advance(far, 3 * MIB);
        let next = claims.take_wanted(gap, 52 * MIB..100 * MIB, 4 * MIB, NEAR).unwrap();
        assert_eq!(claims.left(next), 54 * MIB..56 * MIB);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Take { upto: u64, most: u64 },
        EndAt { who: prop::sample::Index, upto: u64 },
        Want { at: prop::sample::Index, length: u64 },
        Come { who: prop::sample::Index, bytes: u64 },
        Fail { who: prop::sample::Index },
        Cap { most: u64 },
        Extend { who: prop::sample::Index },
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let index = any::<prop::sample::Index>;
        let event = prop_oneof![
            (0..60 * MIB, 1..20 * MIB).prop_map(|(upto, most)| Event::Take { upto, most }),
            (index(), 0..60 * MIB).prop_map(|(who, upto)| Event::EndAt { who, upto }),
            (index(), 1..9 * MIB).prop_map(|(at, length)| Event::Want { at, length }),
            (index(), 1..4 * MIB).prop_map(|(who, bytes)| Event::Come { who, bytes }),
            index().prop_map(|who| Event::Fail { who }),
            (1..9 * MIB).prop_map(|most| Event::Cap { most }),
            index().prop_map(|who| Event::Extend { who }),
        ];
        prop::collection::vec(event, 0..200)
    }

    proptest! {
        /// Whatever happens in between: every byte comes exactly once, and what was wanted is there or under way.
        #[test]
        fn every_byte_comes_once(size in 1..40 * MIB, events in events()) {
            let blob = Blob::new(size);
            let gap = |at| blob.gap(at);
            let mut claims = Claims::default();
            let mut working: Vec<ClaimId> = Vec::new();
            let come = |claims: &mut Claims, working: &mut Vec<ClaimId>, who: usize, bytes: u64| {
                let left = claims.left(working[who]);
                let end = left.end.min(left.start + bytes);
                blob.write(left.start, end);
                if claims.advance(working[who], end - left.start) {
                    working.swap_remove(who);
                }
            };
            for event in events {
                match event {
                    Event::Take { upto, most } => {
                        let taken = claims.take(gap, 0..upto, most);
                        prop_assert!(taken.is_none_or(|id| claims.left(id).end <= chunk_after(upto)));
                        working.extend(taken);
                    }
                    Event::EndAt { who, upto } if !working.is_empty() => {
                        let who = who.index(working.len());
                        if !claims.end_at(working[who], upto) {
                            claims.release(working.swap_remove(who));
                        }
                    }
                    Event::Want { at, length } => {
                        let at = at.index(size as usize) as u64;
                        working.extend(claims.take_wanted(gap, at..size.min(at + length), 4 * MIB, NEAR));
                        let missing = gap(at).filter(|missing| missing.start <= at);
                        let is_near = |c: usize| at.saturating_sub(claims.taken[c].left.start) <= NEAR;
                        let comes = missing.is_none_or(|m| claims.covering(m.start.max(at)).is_some_and(is_near));
                        prop_assert!(comes);
                    }
                    Event::Come { who, bytes } if !working.is_empty() => {
                        let who = who.index(working.len());
                        come(&mut claims, &mut working, who, bytes);
                    }
                    Event::Fail { who } if !working.is_empty() => {
                        claims.release(working.swap_remove(who.index(working.len())));
                    }
                    Event::Cap { most } => claims.cap(most),
                    Event::Extend { who } if !working.is_empty() => {
                        claims.extend(gap, working[who.index(working.len())]);
                    }
                    Event::Come { .. } | Event::Fail { .. } | Event::Extend { .. } | Event::EndAt { .. } => {}
                }
                prop_assert!(claims.taken.iter().all(|claim| !claim.left.is_empty()));
            }
            loop {
                working.extend(claims.take(gap, ALL, u64::MAX));
                if working.is_empty() {
                    break;
                }
                come(&mut claims, &mut working, 0, u64::MAX / 2);
            }
            prop_assert_eq!(gap(0), None);
        }
    }
}
