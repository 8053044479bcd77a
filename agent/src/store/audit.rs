use super::holding::Held;
use super::index::Entry;
use super::lookup::Sight;
use super::provenance::Provenance;
use super::record::{BlobRecord, State};
use super::shelves::Shelves;
use super::verify::Proof;
use crate::image::{Digest, MediaType};

/// One blob of the store, as it is shown to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// What its registry called it, if it said.
    pub media_type: Option<MediaType>,
    /// Where it came from.
    pub provenance: Provenance,
    /// When it was last used, in milliseconds since 1970; 0 for never.
    pub used: u64,
    /// Whose bytes of the disk it has.
    pub held: Held,
    /// How far it is known to be sound.
    pub condition: Condition,
}

/// How far a blob is known to be sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Proven, and on the disk.
    Synced,
    /// Proven, and on its way to the disk.
    Syncing,
    /// Hashed before its next use: found on the disk, or not synced before the machine went down.
    Suspect,
}

/// What a verification of the whole store found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audit {
    /// Blobs that are what their names say.
    pub sound: u64,
    /// Their bytes.
    pub sound_bytes: u64,
    /// Blobs that weren't; they were set aside.
    pub wrong: u64,
    /// Blobs that couldn't be read.
    pub unreadable: u64,
}

impl Audit {
    /// Counts one more.
    pub(super) fn count(&mut self, proof: Proof, size: u64) {
        match proof {
            Proof::Sound => {
                self.sound += 1;
                self.sound_bytes += size;
            }
            Proof::Wrong => self.wrong += 1,
            Proof::Unknown => self.unreadable += 1,
            Proof::Gone => {}
        }
    }
}

impl Shelves {
    /// Blocks on the disk.
    pub(super) fn list(&self, after: Option<&Digest>, limit: usize) -> Vec<Listed> {
        self.index.scan(after, limit).into_iter().map(|entry| self.listed(entry)).collect()
    }

    fn listed(&self, Entry { digest, record, used }: Entry) -> Listed {
        let BlobRecord { size, state, hold, media_type, provenance } = record;
        let condition = match state {
            State::Synced | State::Theirs { .. } => Condition::Synced,
            State::Unsynced(boot) if boot == self.boot => Condition::Syncing,
            State::Unsynced(_) | State::Suspect => Condition::Suspect,
        };
        Listed { digest, size, media_type, provenance, used, held: hold.held(), condition }
    }

    /// Hashes one blob whole, whatever is known of it. Blocks as long as that takes.
    pub(super) fn check(&self, digest: &Digest) -> Proof {
        if matches!(self.look(digest), Sight::Nothing) {
            return Proof::Gone;
        }
        self.prove(digest)
    }
}
