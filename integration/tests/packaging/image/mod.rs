//! The container image: what is in it, what is refused, and that each containerd runs it.

mod contents;
mod refusals;
mod running;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use larder_integration::{Folder, LarderImage, digest_of, say, tool};
use serde_json::Value;

/// For programs that pack and check.
fn output(program: &str, arguments: &[&str]) -> Result<String> {
    say(Command::new(program).args(arguments))
}

/// A program that is packed in no time, where any will do: the C library itself, which is linked as Larder is.
fn small_program(arch: &str) -> Result<PathBuf> {
    let triplet = if arch == "arm64" { "aarch64-linux-gnu" } else { "x86_64-linux-gnu" };
    tool(&format!("image-{arch}/root/usr/lib/{triplet}/libc.so.6"))
}

/// An image, unpacked as a layout.
struct Layout {
    at: PathBuf,
}

impl Layout {
    fn json(&self, path: impl AsRef<Path>) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.at.join(path))?)?)
    }

    fn blob(&self, descriptor: &Value) -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("a descriptor without digest")?;
        let path = self.at.join("blobs").join(digest.replace(':', "/"));
        let bytes = std::fs::read(&path)?;
        ensure!(digest_of(&bytes) == digest && descriptor["size"] == bytes.len(), "{descriptor} isn't what it says");
        Ok(path)
    }

    /// The only manifest, its configuration, and its only layer.
    fn parts(&self) -> Result<(Value, Value, PathBuf)> {
        let index = self.json("index.json")?;
        ensure!(index["manifests"].as_array().is_some_and(|all| all.len() == 1), "{index}");
        let manifest = self.json(self.blob(&index["manifests"][0])?)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        ensure!(layers.len() == 1, "{manifest}");
        Ok((manifest.clone(), self.json(self.blob(&manifest["config"])?)?, self.blob(&layers[0])?))
    }
}

/// The archive's layout.
fn unpacked(folder: &Folder, image: &LarderImage) -> Result<Layout> {
    let (archive, at) = (image.archive().display().to_string(), folder.path().display().to_string());
    output("tar", &["--extract", "--file", &archive, "--directory", &at])?;
    Ok(Layout { at: folder.path().to_owned() })
}
