use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Weak;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::{debug, info, warn};

use super::index::{Change, Entry, Totals};
use super::label::Label;
use super::layout::{ADOPTING, ALGORITHMS, digest_of};
use super::locks::held;
use super::record::{BlobRecord, Hold, State};
use super::shelves::Shelves;
use super::space::Standing;
use crate::image::Digest;

/// How many files or records are looked at before the mending rests.
const BATCH: usize = 500;
/// How long it rests: at most 100,000 files a second, so that serving comes first.
const REST: Duration = Duration::from_millis(5);
/// How often it is looked whether containerd has removed what it was about to.
const TICK: Duration = Duration::from_secs(1);
/// How often the folder is looked after, in ticks.
const TICKS: u32 = 10;
/// What arrived in part and wasn't taken up again for so long is given up.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

impl Shelves {
    /// Compares index and disk once, then looks after the folder until the store ends.
    pub(super) fn mend_until_stopped(&self) {
        if self.space.standing() != Standing::Absent {
            self.mend();
        }
        let mut ticks = 0;
        while !self.stop.wait(TICK) {
            self.look_after_released();
            ticks += 1;
            if ticks % TICKS != 0 {
                continue;
            }
            self.keep_folder();
            self.drop_leftovers(LEFTOVER_AGE);
            self.reading.buffers.trim();
            self.disk();
            self.show_totals();
        }
    }

    fn mend(&self) {
        if self.space.standing() == Standing::Writable {
            self.empty_trash();
            self.drop_leftovers(LEFTOVER_AGE);
        }
        let mut seen = Vec::new();
        for algorithm in ALGORITHMS {
            match self.note_files(algorithm, &mut seen) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    // Without the whole list there is no telling which records have no file.
                    warn!(algorithm, %error, "can't list the store's blobs: the index is used as it is");
                    return;
                }
            }
        }
        seen.sort_unstable();
        if self.check_records(&seen) {
            self.index.passed_trial();
            let (totals, _) = self.index.totals();
            info!(blobs = totals.blobs, bytes = totals.bytes, "index and disk agree");
        }
        self.show_totals();
    }

    /// Goes through the files, and enters those that the index doesn't know. False when the store ends.
    fn note_files(&self, algorithm: &'static str, seen: &mut Vec<u64>) -> io::Result<bool> {
        let mut foreign = 0_u64;
        for (at, entry) in fs::read_dir(self.layout.blobs(algorithm))?.enumerate() {
            let entry = entry?;
            match self.note_file(algorithm, &entry) {
                Some(digest) => seen.push(short(&digest)),
                None => {
                    if foreign == 0 {
                        warn!(path = %entry.path().display(), "this is not a blob of ours: it is left alone");
                    }
                    foreign += 1;
                }
            }
            if at % BATCH == BATCH - 1 {
                if self.index.is_backed_up() {
                    self.index.flush();
                }
                if self.stop.wait(REST) {
                    return Ok(false);
                }
            }
        }
        if foreign > 0 {
            warn!(algorithm, foreign, "there are foreign names among the blobs");
        }
        Ok(true)
    }

    /// The digest that a file is named for; `None` for what is no blob's file.
    fn note_file(&self, algorithm: &str, entry: &DirEntry) -> Option<Digest> {
        let digest = digest_of(algorithm, entry.file_name().to_str()?)?;
        let metadata = match entry.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return None,
            // It went while we looked; the records are looked at later.
            Err(_) => return Some(digest),
        };
        let (mut found, mut hold) = (false, Hold::Own);
        self.index.update(&digest, |known| match known {
            Some(record) if record.size == metadata.len() && !matches!(record.hold, Hold::InPlace(_)) => {
                if record.state == State::Unsynced(self.boot) {
                    self.to_sync.push(&digest);
                }
                hold = record.hold;
                Change::Keep
            }
            Some(BlobRecord { media_type, provenance, .. }) => {
                let (size, state) = (metadata.len(), State::Suspect);
                Change::Put(BlobRecord { size, state, hold: Hold::Own, media_type, provenance }, None)
            }
            None => {
                found = true;
                // Whose it is may be said before it is hashed; it is hashed before it is given to anybody.
                let Label { media_type, provenance } = self.label(&digest);
                let (size, state) = (metadata.len(), State::Suspect);
                Change::Put(BlobRecord { size, state, hold: Hold::Own, media_type, provenance }, None)
            }
        });
        if found {
            debug!(%digest, "a blob that the index didn't know");
        }
        // What containerd took or gave up while nobody looked.
        if (hold == Hold::Own) == (metadata.nlink() > 1) {
            self.recount(&digest);
        }
        if self.index.last_used(&digest) == 0 {
            // Without a time it would never be evicted.
            self.index.set_used(&digest, modified(&metadata).max(1));
        }
        Some(digest)
    }

    /// What a file says of itself; nothing if it can't be read.
    fn label(&self, digest: &Digest) -> Label {
        let opened = self.layout.open_blob(digest).ok().flatten();
        opened.map(|(file, _)| Label::read(&file)).unwrap_or_default()
    }

    /// Goes through the records, and drops those without a file. False when the store ends.
    fn check_records(&self, seen: &[u64]) -> bool {
        let (_, generation) = self.index.totals();
        let mut counted = Totals::default();
        let mut after = None;
        loop {
            let records = self.index.scan(after.as_ref(), BATCH);
            let Some(last) = records.last() else { break };
            after = Some(last.digest);
            for Entry { digest, record, .. } in &records {
                counted.add(Totals::of(record));
                if seen.binary_search(&short(digest)).is_err() {
                    self.drop_ghost(digest);
                }
            }
            if self.stop.wait(REST) {
                return false;
            }
        }
        self.index.correct_totals(counted, generation);
        true
    }

    fn empty_trash(&self) {
        for entry in fs::read_dir(self.layout.trash()).into_iter().flatten().flatten() {
            // What this run throws away it removes itself.
            if !entry.file_name().to_string_lossy().contains(&format!("-{:x}-", self.run)) {
                self.remove(&entry);
            }
        }
    }

    /// Removes what arrived in part and wasn't touched for `age`, and what a process that died was just writing.
    /// Returns the bytes freed.
    pub(super) fn drop_leftovers(&self, age: Duration) -> u64 {
        let arriving: Vec<_> = {
            let arriving = held(&self.arriving);
            arriving.values().filter_map(Weak::upgrade).collect()
        };
        let mut freed = 0;
        for (entry, metadata) in self.ingest_files() {
            let path = entry.path();
            let old = metadata.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|since| since >= age);
            let given_up = match path.extension().and_then(|extension| extension.to_str()) {
                Some("part" | "map") => {
                    old && !arriving.iter().any(|ingest| ingest.path() == path || ingest.map_path() == path)
                }
                Some("tmp") => !entry.file_name().to_string_lossy().contains(&format!("-{:016x}-", self.run)),
                _ => false,
            };
            if given_up && self.remove(&entry) && metadata.nlink() == 1 {
                freed += metadata.blocks() * 512;
            }
        }
        if freed > 0 {
            info!(bytes = freed, "removed what arrived in part and was not taken up again");
            self.space.freed();
        }
        freed
    }

    /// Bytes on disk below `ingest/`, containerd's aside.
    pub(super) fn ingest_bytes(&self) -> u64 {
        let is_theirs = |entry: &DirEntry| entry.file_name().to_string_lossy().starts_with(ADOPTING);
        let own = self.ingest_files().filter(|(entry, _)| !is_theirs(entry));
        own.map(|(_, metadata)| metadata.blocks() * 512).sum()
    }

    fn ingest_files(&self) -> impl Iterator<Item = (DirEntry, Metadata)> {
        let entries = fs::read_dir(self.layout.ingest()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok().map(|metadata| (entry, metadata)))
    }

    fn remove(&self, entry: &DirEntry) -> bool {
        match self.disk.unlink(&entry.path()) {
            Ok(()) => true,
            Err(error) => {
                debug!(path = %entry.path().display(), %error, "can't remove a leftover");
                false
            }
        }
    }
}

/// The first bytes of a digest. Two blobs that share them only keep a record a little longer.
fn short(digest: &Digest) -> u64 {
    let (Digest::Sha256([a, b, c, d, e, f, g, h, ..]) | Digest::Sha512([a, b, c, d, e, f, g, h, ..])) = *digest;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Milliseconds since 1970.
pub(super) fn modified(metadata: &Metadata) -> u64 {
    let time = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
