//! A disk that remembers the order of what was done to it, and makes what a power loss could leave of that.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::image::Digest;
use crate::store::disk::{Disk, LABEL, RealDisk};
use crate::store::layout::FileId;
use crate::store::locks::held;

/// A file by the order of its making, whatever its names.
type FileNumber = usize;

#[derive(Debug, Clone)]
enum Op {
    MakeDir(PathBuf),
    Name(PathBuf, FileNumber),
    /// A file outside the store's folder, that is on the disk already.
    Theirs(PathBuf, FileNumber, Vec<u8>),
    Write(FileNumber, u64, Vec<u8>),
    SetLen(FileNumber, u64),
    Label(FileNumber, Vec<u8>),
    Sync(FileNumber),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf, FileNumber),
    Unlink(PathBuf),
    Mark(Mark),
}

/// What the test promises from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// This blob is on the disk.
    Synced(Digest),
    /// It may be gone.
    Dropped(Digest),
    /// The tag is in the index, on the disk.
    Tagged,
}

#[derive(Debug)]
pub(super) struct Recorder {
    root: PathBuf,
    state: Mutex<Recorded>,
    /// Whether blobs' fsyncs must wait.
    slow: Mutex<bool>,
    fast_again: Condvar,
}

#[derive(Debug, Default)]
struct Recorded {
    log: Vec<Op>,
    files: HashMap<FileId, FileNumber>,
    /// Those outside the store's folder.
    theirs: HashMap<FileId, FileNumber>,
    count: usize,
}

impl Recorder {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), state: Mutex::default(), slow: Mutex::default(), fast_again: Condvar::new() }
    }

    /// Lets the fsyncs of blobs, but not of the index, wait as they do on a slow disk; or go on.
    pub(super) fn set_slow(&self, slow: bool) {
        *held(&self.slow) = slow;
        self.fast_again.notify_all();
    }

    pub(super) fn mark(&self, mark: Mark) {
        held(&self.state).log.push(Op::Mark(mark));
    }

    /// Removes a file outside the store's folder, as its owner does.
    pub(super) fn remove(&self, path: &Path) {
        let mut state = held(&self.state);
        let id = FileId::at(path).unwrap();
        fs::remove_file(path).unwrap();
        state.theirs.remove(&id);
        state.log.push(Op::Unlink(path.to_owned()));
    }

    pub(super) fn len(&self) -> usize {
        held(&self.state).log.len()
    }

    /// What is promised after the first `len` operations.
    pub(super) fn promises(&self, len: usize) -> Vec<Mark> {
        let mut promises = Vec::new();
        for op in &held(&self.state).log[..len] {
            match op {
                Op::Mark(Mark::Dropped(digest)) => promises.retain(|mark| *mark != Mark::Synced(*digest)),
                Op::Mark(mark) => promises.push(*mark),
                _ => {}
            }
        }
        promises
    }

    /// Makes in `target` what the disk could hold after the first `len` operations and a power loss.
    pub(super) fn crash(&self, len: usize, seed: u64, target: &Path) {
        let state = held(&self.state);
        let mut disk = CrashedDisk { files: vec![Inode::default(); state.count], ..CrashedDisk::default() };
        for op in &state.log[..len] {
            disk.replay(op);
        }
        disk.write_out(&mut StdRng::seed_from_u64(seed), &self.root, target);
    }
}

impl Recorded {
    fn number(&mut self, id: FileId) -> FileNumber {
        self.count += 1;
        self.files.insert(id, self.count - 1);
        self.count - 1
    }

    /// A file that was made and written past us, seen for the first time.
    fn adopt(&mut self, path: &Path) -> io::Result<FileNumber> {
        let id = FileId::at(path)?;
        if let Some(number) = self.files.get(&id) {
            return Ok(*number);
        }
        let number = self.number(id);
        self.log.push(Op::Name(path.to_owned(), number));
        self.log.push(Op::Write(number, 0, fs::read(path)?));
        Ok(number)
    }

    /// A file that its owner has synced, outside the store's folder.
    fn their(&mut self, path: &Path) -> io::Result<FileNumber> {
        let id = FileId::at(path)?;
        if let Some(number) = self.theirs.get(&id) {
            return Ok(*number);
        }
        // Its number may have been one of ours before.
        let number = self.number(id);
        self.theirs.insert(id, number);
        self.log.push(Op::Theirs(path.to_owned(), number, fs::read(path)?));
        Ok(number)
    }

    fn known(&self, file: &File) -> io::Result<Option<FileNumber>> {
        Ok(self.files.get(&FileId::of(&file.metadata()?)).copied())
    }
}

impl Disk for Recorder {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = held(&self.state);
        RealDisk.create_dir(path)?;
        state.log.push(Op::MakeDir(path.to_owned()));
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let mut state = held(&self.state);
        let is_new = !path.exists();
        let file = RealDisk.open(path)?;
        if is_new {
            let number = state.number(FileId::of(&file.metadata()?));
            state.log.push(Op::Name(path.to_owned(), number));
        } else {
            state.adopt(path)?;
        }
        Ok(file)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = held(&self.state);
        RealDisk.write_at(file, offset, bytes)?;
        let number = state.known(file)?.expect("opened through us");
        state.log.push(Op::Write(number, offset, bytes.to_vec()));
        Ok(())
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        let mut state = held(&self.state);
        RealDisk.set_len(file, len)?;
        let number = state.known(file)?.expect("opened through us");
        state.log.push(Op::SetLen(number, len));
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let index = FileId::at(&self.root.join("index.redb")).ok();
        if index != Some(FileId::of(&file.metadata()?)) {
            let slow = held(&self.slow);
            drop(self.fast_again.wait_while(slow, |slow| *slow).unwrap_or_else(PoisonError::into_inner));
        }
        let mut state = held(&self.state);
        RealDisk.sync(file)?;
        if let Some(number) = state.known(file)? {
            state.log.push(Op::Sync(number));
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = held(&self.state);
        RealDisk.sync_dir(path)?;
        state.log.push(Op::SyncDir(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = held(&self.state);
        let number = state.adopt(from)?;
        RealDisk.rename(from, to)?;
        state.log.push(Op::Rename(from.to_owned(), to.to_owned(), number));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = held(&self.state);
        let number = state.their(from)?;
        RealDisk.link(from, to)?;
        state.log.push(Op::Name(to.to_owned(), number));
        Ok(())
    }

    fn reflink(&self, _: &File, _: &Path) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = held(&self.state);
        let metadata = path.symlink_metadata()?;
        RealDisk.unlink(path)?;
        if metadata.nlink() == 1 {
            // Its number may be given to another file from now on.
            state.files.remove(&FileId::of(&metadata));
        }
        state.log.push(Op::Unlink(path.to_owned()));
        Ok(())
    }

    fn set_label(&self, file: &File, label: &[u8]) -> io::Result<()> {
        let mut state = held(&self.state);
        RealDisk.set_label(file, label)?;
        if let Some(number) = state.known(file)? {
            state.log.push(Op::Label(number, label.to_vec()));
        }
        Ok(())
    }
}

/// What is on the disk for sure, and what may be.
#[derive(Debug, Default)]
struct CrashedDisk {
    dirs: Vec<PathBuf>,
    files: Vec<Inode>,
    names: BTreeMap<PathBuf, FileNumber>,
    /// In their order; each may have reached the disk or not.
    unsynced_names: Vec<Op>,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    bytes: Vec<u8>,
    label: Option<Vec<u8>>,
    unsynced: Vec<Op>,
}

impl CrashedDisk {
    fn replay(&mut self, op: &Op) {
        match op {
            Op::MakeDir(path) => self.dirs.push(path.clone()),
            Op::Theirs(path, file, bytes) => {
                self.files[*file].bytes.clone_from(bytes);
                self.names.insert(path.clone(), *file);
            }
            Op::Name(..) | Op::Rename(..) | Op::Unlink(_) => self.unsynced_names.push(op.clone()),
            Op::Write(file, ..) | Op::SetLen(file, _) | Op::Label(file, _) => {
                self.files[*file].unsynced.push(op.clone());
            }
            Op::Sync(file) => {
                let inode = &mut self.files[*file];
                for op in std::mem::take(&mut inode.unsynced) {
                    inode.apply(&op);
                }
            }
            Op::SyncDir(dir) => {
                let in_dir = |path: &Path| path.parent() == Some(dir);
                let (synced, unsynced) =
                    std::mem::take(&mut self.unsynced_names).into_iter().partition::<Vec<_>, _>(|op| match op {
                        Op::Name(path, _) | Op::Unlink(path) => in_dir(path),
                        Op::Rename(from, to, _) => in_dir(from) || in_dir(to),
                        _ => false,
                    });
                self.unsynced_names = unsynced;
                for op in synced {
                    self.apply_name(&op);
                }
            }
            Op::Mark(_) => {}
        }
    }

    fn apply_name(&mut self, op: &Op) {
        match op {
            Op::Name(path, file) => drop(self.names.insert(path.clone(), *file)),
            Op::Unlink(path) => drop(self.names.remove(path)),
            Op::Rename(from, to, file) => {
                if self.names.get(from) == Some(file) {
                    self.names.remove(from);
                }
                self.names.insert(to.clone(), *file);
            }
            _ => {}
        }
    }

    fn write_out(mut self, chance: &mut StdRng, root: &Path, target: &Path) {
        // Some filesystems write names in order, others as it comes.
        let pending = std::mem::take(&mut self.unsynced_names);
        let until = if chance.random() { chance.random_range(0..=pending.len()) } else { usize::MAX };
        for (at, op) in pending.iter().enumerate() {
            if (until == usize::MAX && chance.random()) || (until != usize::MAX && at < until) {
                self.apply_name(op);
            }
        }
        // What isn't ours lies beside us.
        let there = |path: &Path| match path.strip_prefix(root) {
            Ok(below) => target.join(below),
            Err(_) => target.with_extension("theirs").join(path.file_name().unwrap()),
        };
        fs::create_dir_all(target.with_extension("theirs")).unwrap();
        for dir in &self.dirs {
            fs::create_dir_all(there(dir)).unwrap();
        }
        for inode in &mut self.files {
            inode.lose_power(chance);
        }
        let mut written: HashMap<FileNumber, PathBuf> = HashMap::new();
        for (path, file) in &self.names {
            let inode = &self.files[*file];
            if let Some(first) = written.insert(*file, there(path)) {
                fs::hard_link(first, there(path)).unwrap();
                continue;
            }
            fs::write(there(path), &inode.bytes).unwrap();
            if let Some(label) = &inode.label {
                rustix::fs::setxattr(there(path), LABEL, label, rustix::fs::XattrFlags::empty()).unwrap();
            }
        }
    }
}

impl Inode {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(_, offset, bytes) => {
                let (from, to) = (*offset as usize, *offset as usize + bytes.len());
                self.bytes.resize(self.bytes.len().max(to), 0);
                self.bytes[from..to].copy_from_slice(bytes);
            }
            Op::SetLen(_, len) => self.bytes.resize(*len as usize, 0),
            Op::Label(_, label) => self.label = Some(label.clone()),
            _ => {}
        }
    }

    /// Each write since the last sync may be there, lost, torn, or a hole where the file grew.
    fn lose_power(&mut self, chance: &mut StdRng) {
        let all_lost = chance.random_bool(0.3);
        let synced_len = self.bytes.len();
        for op in std::mem::take(&mut self.unsynced) {
            let op = match (op, chance.random_range(0..5)) {
                _ if all_lost => continue,
                (op, 0 | 1) => op,
                (Op::Write(file, offset, bytes), 2) => {
                    let torn = chance.random_range(0..=bytes.len() / 512) * 512;
                    Op::Write(file, offset, bytes[..torn].to_vec())
                }
                (Op::Write(file, offset, bytes), 3) if offset as usize >= synced_len => {
                    Op::Write(file, offset, vec![0; bytes.len()])
                }
                _ => continue,
            };
            self.apply(&op);
        }
    }
}
