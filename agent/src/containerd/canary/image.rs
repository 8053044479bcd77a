use bytes::Bytes;

use crate::image::{Digest, MediaType, Reference};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The one file in the image.
const FILE: (&str, &[u8]) = ("larder-canary", b"This image proves that containerd pulls through Larder.\n");

/// An OCI image of one layer with one small file. The same bytes every time, for one architecture.
#[derive(Debug)]
pub(super) struct CanaryImage {
    manifest: Blob,
    blobs: [Blob; 2],
}

#[derive(Debug)]
struct Blob {
    media: MediaType,
    digest: Digest,
    bytes: Bytes,
}

impl CanaryImage {
    pub(super) fn for_this_machine() -> Self {
        Self::new(go_architecture(std::env::consts::ARCH))
    }

    fn new(architecture: &str) -> Self {
        let tar = tar(FILE.0, FILE.1);
        let layer = Blob::new(LAYER, gzip(&tar));
        // Written out: the order of keys is part of the digests.
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Digest::of(&tar)
        );
        let config = Blob::new(CONFIG, config.into_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            config.descriptor(),
            layer.descriptor()
        );
        Self { manifest: Blob::new(MANIFEST, manifest.into_bytes()), blobs: [config, layer] }
    }

    pub(super) fn content(&self, reference: &Reference) -> Option<(MediaType, Bytes)> {
        let blob = match reference {
            Reference::Tag(_) => &self.manifest,
            Reference::Digest(digest) => {
                std::iter::once(&self.manifest).chain(&self.blobs).find(|blob| blob.digest == *digest)?
            }
        };
        Some((blob.media.clone(), blob.bytes.clone()))
    }
}

impl Blob {
    fn new(media: &str, bytes: Vec<u8>) -> Self {
        let media = MediaType::new(media).unwrap_or_else(MediaType::octet_stream);
        Self { media, digest: Digest::of(&bytes), bytes: bytes.into() }
    }

    fn descriptor(&self) -> String {
        let Self { media, digest, bytes } = self;
        format!(r#"{{"mediaType":"{media}","digest":"{digest}","size":{}}}"#, bytes.len())
    }
}

/// As the image specification calls it; containerd compares it with the node's.
fn go_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    }
}

/// A tar archive (ustar) of one file that root owns, from 1970.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000444\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    // The checksum is taken with spaces in its place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());

    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    // Two empty blocks end it.
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

/// A gzip stream with its content stored, not compressed: needs no compressor, and can't change with one.
fn gzip(content: &[u8]) -> Vec<u8> {
    // No flags, no time, no operating system.
    let mut stream = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut blocks = content.chunks(usize::from(u16::MAX)).peekable();
    while let Some(block) = blocks.next() {
        #[expect(clippy::cast_possible_truncation, reason = "chunks are cut to u16::MAX")]
        let length = block.len() as u16;
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend_from_slice(&length.to_le_bytes());
        stream.extend_from_slice(&(!length).to_le_bytes());
        stream.extend_from_slice(block);
    }
    stream.extend_from_slice(&crc32fast::hash(content).to_le_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "gzip counts modulo 2^32")]
    stream.extend_from_slice(&(content.len() as u32).to_le_bytes());
    stream
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn every_part_is_found_by_its_digest() {
        let image = CanaryImage::new("amd64");
        let (media, manifest) = image.content(&Reference::Tag("any".parse().unwrap())).unwrap();
        assert!(media.is_manifest());
        let by_digest = image.content(&Reference::Digest(Digest::of(&manifest))).unwrap();
        assert_eq!(by_digest, (media, manifest.clone()));

        let manifest: oci_spec::image::ImageManifest = serde_json::from_slice(&manifest).unwrap();
        for part in std::iter::once(manifest.config()).chain(manifest.layers()) {
            let digest: Digest = part.digest().to_string().parse().unwrap();
            let (media, bytes) = image.content(&Reference::Digest(digest)).unwrap();
            assert_eq!(media.as_str(), part.media_type().to_string());
            assert_eq!(bytes.len() as u64, part.size());
            assert_eq!(Digest::of(&bytes), digest);
        }
        assert!(image.content(&Reference::Digest(Digest::of(b"other"))).is_none());
    }

    #[test]
    fn the_same_bytes_every_time() {
        let digest = CanaryImage::new("amd64").manifest.digest;
        assert_eq!(digest, CanaryImage::new("amd64").manifest.digest);
        assert_ne!(digest, CanaryImage::new("arm64").manifest.digest);
    }

    #[test]
    fn tar_and_gzip_as_others_read_them() {
        let mut tar = Command::new("tar")
            .args(["-xzO", FILE.0])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&CanaryImage::new("amd64").blobs[1].bytes).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, FILE.1);
    }
}
