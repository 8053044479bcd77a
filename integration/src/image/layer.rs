//! A layer: a tar of one file, as gzip. The file is random, which doesn't compress: it is stored, not deflated.

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::digest_of;

const BLOCK: usize = 512;

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) gzip: Bytes,
    /// The digest of the tar, which configs name.
    pub(super) diff_id: String,
}

impl Layer {
    /// The `n`th layer of the image of a seed: a file of `size` bytes.
    pub(super) fn random(seed: u64, n: u64, size: usize) -> Self {
        let mut content = vec![0; size];
        StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(n)).fill_bytes(&mut content);
        Self::of_file(&format!("data-{seed}-{n}"), 0o644, &content)
    }

    /// One with this file.
    pub(super) fn of_file(name: &str, mode: u32, content: &[u8]) -> Self {
        let tar = tar(name, mode, content);
        Self { gzip: gzip_stored(&tar), diff_id: digest_of(&tar) }
    }
}

/// Random bytes, made fast: the same mebibyte again and again, each with a mark of its own, so that no two are alike.
pub(super) fn noise(seed: u64, bytes: usize) -> Bytes {
    const MARK: usize = 64;
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut noise = vec![0; 1 << 20];
        StdRng::seed_from_u64(0).fill_bytes(&mut noise);
        noise
    });
    let mut random = StdRng::seed_from_u64(seed);
    let mut noise = BytesMut::with_capacity(bytes);
    while noise.len() < bytes {
        let (at, length) = (noise.len(), NOISE.len().min(bytes - noise.len()));
        noise.extend_from_slice(&NOISE[..length]);
        random.fill_bytes(&mut noise[at..at + length.min(MARK)]);
    }
    noise.freeze()
}

/// One file, in the ustar format.
fn tar(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = [0; BLOCK];
    let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, name);
    field(100, &format!("{mode:07o}\0"));
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{:011o}\0", content.len()));
    field(136, "00000000000\0");
    // The checksum is taken with spaces in its own place.
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());

    let mut tar = Vec::with_capacity(content.len() + 4 * BLOCK);
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    tar
}

/// A gzip stream of stored blocks.
pub(crate) fn gzip_stored(bytes: &[u8]) -> Bytes {
    // The most that the 16 bits of a block's length can say.
    const STORED: usize = 65_535;
    let mut gzip = BytesMut::with_capacity(bytes.len() + bytes.len() / STORED * 5 + 64);
    // Magic, deflate, no flags, no time, no hints, Unix.
    gzip.put_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
    let mut blocks = bytes.chunks(STORED).peekable();
    while let Some(block) = blocks.next() {
        gzip.put_u8(u8::from(blocks.peek().is_none()));
        gzip.put_u16_le(block.len() as u16);
        gzip.put_u16_le(!(block.len() as u16));
        gzip.put_slice(block);
    }
    gzip.put_u32_le(crc32fast::hash(bytes));
    gzip.put_u32_le(bytes.len() as u32);
    gzip.freeze()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_and_gzip_can_read_it() {
        let layer = Layer::random(7, 0, 200_000);
        let mut tar = Command::new("tar")
            .args(["--extract", "--gzip", "--to-stdout", "--file", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = tar.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&layer.gzip));
        let output = tar.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success());
        let mut content = vec![0; 200_000];
        StdRng::seed_from_u64(7 * 1_000_003).fill_bytes(&mut content);
        assert!(output.stdout == content);
    }
}
