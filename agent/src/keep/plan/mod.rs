//! What goes, and in what order: a plan, made of what is here and who claims it, without looking at anything.
//!
//! What goes or stays as one is a [`Unit`]: an image that is known, the blobs that a manifest of no known image names, or
//! a single blob that nothing names. A blob that several units claim goes with the last of them, and nothing is planned
//! that would free nothing.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use crate::image::{Digest, ImageName};
use crate::store::Reason;

/// What was used so recently is likely to be in use still, in milliseconds: a pull reads its blobs one after the other.
const RECENT: u64 = 10_000;

/// One blob of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    /// Its name.
    pub(super) digest: Digest,
    /// Bytes.
    pub(super) size: u64,
    /// Bytes that are free when it goes; none where containerd holds it too.
    pub(super) frees: u64,
    /// When it was last used, in milliseconds since 1970; 0 for never.
    pub(super) used: u64,
    /// Somebody reads it now.
    pub(super) is_open: bool,
}

/// What goes or stays as one.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    /// What it is.
    pub(super) subject: Subject,
    /// What it is good for.
    pub(super) rank: Rank,
    /// When it was last used, in milliseconds since 1970.
    pub(super) used: u64,
    /// Its blobs, here or not; each once.
    pub(super) parts: Vec<Digest>,
}

/// What a unit is, for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// An image that is known.
    Image(ImageName),
    /// What a manifest names, of no image that is known.
    Manifest(Digest),
    /// A blob that nothing here names.
    Blob(Digest),
}

/// What a unit is good for. What goes first sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Rank {
    /// Nothing uses it.
    Unused,
    /// Somebody expects to need it: it was prefetched, or is another node's copy.
    Wanted,
    /// Nothing known uses it, and it was used a moment ago: likely a pull that goes on.
    Recent,
    /// A pattern keeps it.
    Kept,
    /// Containers use it.
    InUse,
}

/// What goes, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Each whole: what of it stays is claimed by others, or frees nothing.
    pub goes: Vec<Going>,
    /// Bytes that are free afterwards.
    pub bytes: u64,
    /// Bytes that should be free too, and for which nothing may go.
    pub left: u64,
}

/// One unit that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Going {
    /// What it is.
    pub subject: Subject,
    /// The blobs that go with it. Those that it shares with others that go stand with the last of them.
    pub digests: Vec<Digest>,
    /// Their bytes.
    pub bytes: u64,
}

impl Rank {
    /// The last that goes for this bound. A disk that others filled is not made better by what would be missed here; for
    /// our own bound all may go.
    const fn last_for(reason: Reason) -> Self {
        match reason {
            Reason::MaxBytes => Self::InUse,
            Reason::Full => Self::Recent,
            _ => Self::Wanted,
        }
    }
}

/// Plans to free `goal` bytes for a bound that is passed, at `now` in milliseconds since 1970.
pub(super) fn make_room(blobs: &[Blob], units: Vec<Unit>, goal: u64, reason: Reason, now: u64) -> Plan {
    let mut ledger = Ledger::open(blobs, units, now);
    let last = Rank::last_for(reason);
    ledger.units.sort_by_key(|unit| (unit.rank, unit.used));
    ledger.drop_while(goal, |unit| unit.rank <= last)
}

/// Plans to drop whatever nothing has used since `before`, in milliseconds since 1970.
pub(super) fn expire(blobs: &[Blob], units: Vec<Unit>, before: u64, now: u64) -> Plan {
    let mut ledger = Ledger::open(blobs, units, now);
    ledger.units.retain(|unit| unit.rank == Rank::Unused && unit.used < before);
    ledger.units.sort_by_key(|unit| unit.used);
    ledger.drop_while(u64::MAX, |_| true).without_goal()
}

/// Plans to drop these blobs, as far as no unit claims them that is in use or kept. containerd has given them up, and
/// removes its own names of them about now: they free what they have.
pub(super) fn let_go(mut blobs: Vec<Blob>, units: Vec<Unit>, released: &HashSet<Digest>, now: u64) -> Plan {
    for blob in blobs.iter_mut().filter(|blob| released.contains(&blob.digest)) {
        blob.frees = blob.size;
    }
    let mut ledger = Ledger::open(&blobs, units, now);
    ledger.units.retain(|unit| unit.rank <= Rank::Wanted && unit.parts.iter().any(|part| released.contains(part)));
    ledger.units.sort_by_key(|unit| (unit.rank, unit.used));
    ledger.drop_while(u64::MAX, |_| true).without_goal()
}

/// Who claims what.
struct Ledger {
    /// Bytes that each blob frees, and how many units claim it.
    blobs: HashMap<Digest, (u64, u32)>,
    units: Vec<Unit>,
}

impl Ledger {
    fn open(blobs: &[Blob], mut units: Vec<Unit>, now: u64) -> Self {
        let mut claims: HashMap<Digest, (u64, u32)> = blobs.iter().map(|blob| (blob.digest, (blob.frees, 0))).collect();
        let busy: HashSet<Digest> = blobs.iter().filter(|blob| blob.is_open).map(|blob| blob.digest).collect();
        for unit in &mut units {
            unit.parts.retain(|part| match claims.get_mut(part) {
                Some((_, count)) => {
                    *count += 1;
                    true
                }
                None => false,
            });
            if unit.rank <= Rank::Wanted && !busy.is_empty() && unit.parts.iter().any(|part| busy.contains(part)) {
                unit.rank = Rank::Recent;
            }
        }
        for blob in blobs {
            if let Some((_, count @ 0)) = claims.get_mut(&blob.digest) {
                *count = 1;
                let rank = if blob.is_open { Rank::Recent } else { Rank::Unused };
                let subject = Subject::Blob(blob.digest);
                units.push(Unit { subject, rank, used: blob.used, parts: vec![blob.digest] });
            }
        }
        for unit in &mut units {
            if unit.rank == Rank::Unused && unit.used.saturating_add(RECENT) > now {
                unit.rank = Rank::Recent;
            }
        }
        Self { blobs: claims, units }
    }

    /// Drops units in their order, until `goal` bytes are free or one comes that may not go.
    fn drop_while(mut self, goal: u64, may_go: impl Fn(&Unit) -> bool) -> Plan {
        let mut bytes = 0;
        let mut dropped = Vec::new();
        let mut freed = HashSet::new();
        for unit in self.units {
            if bytes >= goal || !may_go(&unit) {
                break;
            }
            let mut going = Going { subject: unit.subject, digests: Vec::new(), bytes: 0 };
            for part in &unit.parts {
                let Some((frees, count)) = self.blobs.get_mut(part) else { continue };
                *count -= 1;
                if *count == 0 && *frees > 0 {
                    going.digests.push(*part);
                    going.bytes += *frees;
                    freed.insert(*part);
                }
            }
            bytes += going.bytes;
            dropped.push((going, unit.parts));
        }
        // Whoever was passed on the way, and loses nothing, stays as whole as it was.
        dropped.retain(|(_, parts)| parts.iter().any(|part| freed.contains(part)));
        let goes = dropped.into_iter().map(|(going, _)| going).collect();
        Plan { goes, bytes, left: goal.saturating_sub(bytes) }
    }
}

impl Plan {
    fn without_goal(self) -> Self {
        Self { left: 0, ..self }
    }

    /// All blobs that go.
    pub(super) fn digests(&self) -> Vec<Digest> {
        self.goes.iter().flat_map(|going| going.digests.iter().copied()).collect()
    }
}
