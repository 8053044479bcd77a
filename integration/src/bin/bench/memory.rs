//! Memory, made alike before each measurement.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// What isn't filled, in bytes: the benchmark's programs live in it.
const SPARED: u64 = 2 << 30;
/// So little is free on a machine that has been up for a while, in bytes.
const LITTLE: u64 = 512 << 20;
/// What the kernel keeps free for itself, in bytes.
const LEFT_FREE: u64 = 128 << 20;
const PIECE: usize = 4 << 20;

/// A file that has no name any more.
static BALLAST: OnceLock<File> = OnceLock::new();

/// Fills the page cache with something else, as it is on a machine that has been up for a while.
///
/// A virtual machine's memory that was never used, or that its host was told is free, costs several times a copy when it
/// is used again. Whoever happens to be given such pages would seem slow for it: the same pull was seen to take twice the
/// time. Where nothing is free, a pull is given pages that were in use.
pub(super) async fn fill() -> Result<()> {
    tokio::task::spawn_blocking(|| {
        let mut file = match BALLAST.get() {
            Some(file) => file,
            None => {
                let made = make()?;
                BALLAST.get_or_init(|| made)
            }
        };
        let mut piece = vec![0; PIECE];
        for _ in 0..3 {
            file.rewind()?;
            while file.read(&mut piece)? > 0 {}
            if known("MemFree:")? <= LITTLE {
                break;
            }
        }
        touch_what_is_free()
    })
    .await?
}

/// What is free is taken and given back: the host hears of it again after seconds, and pulls take less.
fn touch_what_is_free() -> Result<()> {
    let free = known("MemFree:")?.saturating_sub(LEFT_FREE);
    let touched = vec![1_u8; usize::try_from(free)?];
    drop(std::hint::black_box(touched));
    Ok(())
}

/// Reads all files in a folder and its folders: they are in the page cache then.
pub(super) fn read_all(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            read_all(&entry.path())?;
        } else {
            std::io::copy(&mut File::open(entry.path())?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

fn make() -> Result<File> {
    let size = known("MemAvailable:")?.saturating_sub(SPARED);
    let room = nix::sys::statvfs::statvfs(&std::env::temp_dir())?;
    let room = room.blocks_available() * room.fragment_size();
    ensure!(
        room > size + (8 << 30),
        "the page cache can't be filled: {} takes no {size} bytes",
        std::env::temp_dir().display()
    );
    let mut file = tempfile::tempfile_in(std::env::temp_dir())?;
    let piece = vec![1; PIECE];
    for _ in 0..size / PIECE as u64 {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    Ok(file)
}

/// One of the kernel's figures, in bytes.
fn known(name: &str) -> Result<u64> {
    let known = std::fs::read_to_string("/proc/meminfo")?;
    let kibibytes =
        known.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("/proc/meminfo says nothing of {name}"))? << 10)
}
