//! OCI images made here: real layers that unpack, with content that is random, repeatable and in memory.

mod layer;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tool;
use layer::Layer;

pub(crate) use layer::gzip_stored;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Content with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// As manifests name it, and as it is served.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// The bytes.
    pub bytes: Bytes,
}

/// An image, or an index of several, with everything it refers to.
#[derive(Debug, Clone)]
pub struct Image {
    // Children before their index: registries want them in this order.
    manifests: Vec<Blob>,
    blobs: Vec<Blob>,
}

/// Puts an image together; see [`Image::builder`].
#[derive(Debug)]
pub struct ImageBuilder {
    seed: u64,
    architecture: &'static str,
    layers: Vec<Layer>,
    command: &'static [&'static str],
}

impl Image {
    /// An image whose content follows from `seed`. Images of different seeds have nothing in common.
    pub fn builder(seed: u64) -> ImageBuilder {
        ImageBuilder { seed, architecture: "amd64", layers: Vec::new(), command: &[] }
    }

    /// One layer of a kilobyte.
    pub fn tiny(seed: u64) -> Self {
        Self::builder(seed).layer(1 << 10).build()
    }

    /// One layer of about `mebibytes`.
    pub fn one_layer(seed: u64, mebibytes: usize) -> Self {
        Self::builder(seed).layer(mebibytes << 20).build()
    }

    /// An image that containers can run: a layer of a kilobyte, and one with a program.
    pub fn runnable(seed: u64) -> Result<Self> {
        Ok(Self::builder(seed).layer(1 << 10).program()?.build())
    }

    /// One layer of random `bytes`, which no containerd could unpack: it is made fast, and is as long as it says.
    pub fn opaque(seed: u64, bytes: usize) -> Self {
        Self::builder(seed).given_layer(layer::noise(seed, bytes), digest_of(&[])).build()
    }

    /// `count` layers of `kibibytes` each.
    pub fn many_layers(seed: u64, count: usize, kibibytes: usize) -> Self {
        (0..count).fold(Self::builder(seed), |builder, _| builder.layer(kibibytes << 10)).build()
    }

    /// An index of two platforms, amd64 and arm64, with one layer of about `mebibytes` for each.
    pub fn index(seed: u64, mebibytes: usize) -> Self {
        let platforms = ["amd64", "arm64"].map(|architecture| {
            let seed = Sha256::digest(format!("{seed} {architecture}"));
            let seed = u64::from_le_bytes(std::array::from_fn(|byte| seed[byte]));
            (architecture, Self::builder(seed).architecture(architecture).layer(mebibytes << 20).build())
        });
        let manifests: Vec<Value> = platforms
            .iter()
            .map(|(architecture, image)| {
                let mut entry = descriptor(image.root());
                entry["platform"] = json!({ "os": "linux", "architecture": architecture });
                entry
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let mut all = Self { manifests: Vec::new(), blobs: Vec::new() };
        for (_, image) in platforms {
            all.manifests.extend(image.manifests);
            all.blobs.extend(image.blobs);
        }
        all.manifests.push(Blob::json(INDEX, &index));
        all
    }

    /// What a tag points at: the manifest, or the index.
    pub fn root(&self) -> &Blob {
        &self.manifests[self.manifests.len() - 1]
    }

    /// Every manifest, the root last.
    pub fn manifests(&self) -> &[Blob] {
        &self.manifests
    }

    /// Configs and layers.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// The bytes of all of it.
    pub fn size(&self) -> u64 {
        self.manifests.iter().chain(&self.blobs).map(|blob| blob.bytes.len() as u64).sum()
    }

    /// The largest layer.
    pub fn largest(&self) -> &Blob {
        let layers = self.blobs.iter().filter(|blob| blob.media_type == LAYER);
        layers.max_by_key(|blob| blob.bytes.len()).unwrap_or_else(|| unreachable!("an image has a layer"))
    }
}

impl ImageBuilder {
    /// One more layer, with a file of `bytes`.
    pub fn layer(mut self, bytes: usize) -> Self {
        self.layers.push(Layer::random(self.seed, self.layers.len() as u64, bytes));
        self
    }

    /// One more layer, made elsewhere: a tar as gzip, and the digest of the tar.
    pub fn given_layer(mut self, gzip: Bytes, diff_id: String) -> Self {
        self.layers.push(Layer { gzip, diff_id });
        self
    }

    /// One more layer, with a program that needs nothing else: busybox, as `/busybox`. By itself, a container of this image
    /// sleeps for ten minutes.
    pub fn program(mut self) -> Result<Self> {
        let program = tool("busybox/bin/busybox")?;
        let program = std::fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
        self.layers.push(Layer::of_file("busybox", 0o755, &program));
        self.command = &["/busybox", "sleep", "600"];
        Ok(self)
    }

    /// The platform's architecture; `amd64` otherwise.
    pub fn architecture(mut self, architecture: &'static str) -> Self {
        self.architecture = architecture;
        self
    }

    /// The image. One without layers gets a small one.
    pub fn build(mut self) -> Image {
        if self.layers.is_empty() {
            self = self.layer(1 << 10);
        }
        let layers = self.layers;
        let config = Blob::json(
            CONFIG,
            &json!({
                "architecture": self.architecture,
                "os": "linux",
                "config": { "Labels": { "seed": self.seed.to_string() }, "Cmd": self.command },
                "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>() },
            }),
        );
        let layers: Vec<Blob> = layers.into_iter().map(|layer| Blob::new(LAYER, layer.gzip)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(&config),
            "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
        });
        let blobs = std::iter::once(config).chain(layers).collect();
        Image { manifests: vec![Blob::json(MANIFEST, &manifest)], blobs }
    }
}

impl Blob {
    fn new(media_type: &str, bytes: Bytes) -> Self {
        Self { media_type: media_type.to_owned(), digest: digest_of(&bytes), bytes }
    }

    fn json(media_type: &str, value: &Value) -> Self {
        Self::new(media_type, Bytes::from(value.to_string()))
    }
}

fn descriptor(blob: &Blob) -> Value {
    json!({ "mediaType": blob.media_type, "digest": blob.digest, "size": blob.bytes.len() })
}

/// `sha256:…` of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_follows_from_its_seed() {
        assert_eq!(Image::tiny(1).root(), Image::tiny(1).root());
        assert_ne!(Image::tiny(1).largest().digest, Image::tiny(2).largest().digest);
    }

    #[test]
    fn an_index_lists_a_manifest_for_each_platform() {
        let index = Image::index(1, 0);
        let root: Value = serde_json::from_slice(&index.root().bytes).unwrap();
        let listed: Vec<&str> =
            root["manifests"].as_array().unwrap().iter().map(|entry| entry["digest"].as_str().unwrap()).collect();
        let held: Vec<&str> = index.manifests()[..2].iter().map(|blob| blob.digest.as_str()).collect();
        assert_eq!(listed, held);
        assert_eq!(index.blobs().len(), 4);
    }
}
