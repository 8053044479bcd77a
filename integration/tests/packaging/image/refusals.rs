//! What would make an image that doesn't run is refused when it is built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use larder_integration::{Folder, LarderImage};

use super::small_program;
use crate::support::run;

/// Expects the script to fail on a binary, saying so, and to leave nothing behind.
async fn refused(folder: &Folder, binary: &Path, options: &[&str], why: &str) -> Result<()> {
    let at = folder.path().join("refused");
    let output = format!("oci:{}:test", at.display());
    let error = LarderImage::build(binary, &output, options).await.err();
    let error = error.with_context(|| format!("it is built, where it should have said: {why}"))?.to_string();
    ensure!(error.contains(why), "{error}");
    ensure!(!at.exists(), "an image is there that was refused");
    Ok(())
}

/// The binary with one word in place of another of the same length.
async fn with(folder: &Folder, word: &str, other: &str) -> Result<PathBuf> {
    assert_eq!(word.len(), other.len());
    let mut bytes = std::fs::read(LarderImage::binary().await?)?;
    // Words of the dynamic linker end in a NUL.
    let from = [word.as_bytes(), b"\0"].concat();
    let at = bytes.windows(from.len()).position(|part| part == from).with_context(|| format!("no {word}"))?;
    bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
    let path = folder.path().join("binary");
    std::fs::write(&path, bytes)?;
    Ok(path)
}

#[test]
fn a_binary_of_another_architecture() {
    run(async {
        let folder = Folder::new()?;
        refused(&folder, &LarderImage::binary().await?, &["--arch", "arm64"], "isn't a program for arm64").await
    });
}

#[test]
fn a_binary_that_wants_a_newer_library() {
    run(async {
        let folder = Folder::new()?;
        let newer = with(&folder, "GLIBC_2.34", "GLIBC_9.99").await?;
        refused(&folder, &newer, &[], "wants newer libraries than").await?;
        refused(&folder, &newer, &[], "GLIBC_9.99").await
    });
}

#[test]
fn a_binary_that_wants_another_library() {
    run(async {
        let folder = Folder::new()?;
        let other = with(&folder, "libgcc_s.so.1", "libssl_s.so.1").await?;
        refused(&folder, &other, &[], "wants libssl_s.so.1, which the image hasn't").await
    });
}

#[test]
fn an_image_that_is_too_large() {
    run(async {
        let folder = Folder::new()?;
        refused(&folder, &small_program("amd64")?, &["--max-mib", "1"], "larger than the 1 MiB").await
    });
}
