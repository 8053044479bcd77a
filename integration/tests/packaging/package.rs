//! The Debian package, of the program that is tested, made once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use larder_integration::{program, tool};

/// This repository.
pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The package as a file.
pub(super) fn package() -> Result<PathBuf> {
    static MADE: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(package) = made.as_ref() {
        return Ok(package.clone());
    }
    let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join("larder.deb");
    papers()?;
    let profile = program()?.parent().and_then(Path::file_name).context("a program without a folder")?.to_owned();
    let profile = if profile == "debug" { "dev".into() } else { profile };
    let mut build = Command::new(tool("cargo-deb/bin/cargo-deb")?);
    build.arg("deb").args(["--no-build", "--fast", "--compress-type", "gzip"]).arg("--profile").arg(profile);
    build.arg("--manifest-path").arg(repository().join("agent/Cargo.toml")).arg("--output").arg(&package);
    run(&mut build)?;
    *made = Some(package.clone());
    Ok(package)
}

/// Completions and manual, where the package takes them from.
fn papers() -> Result<()> {
    let root = repository();
    run(Command::new(root.join("systemd/papers")).arg(program()?).arg(root.join("target/papers"))).map(drop)
}

/// Runs a command that must succeed; returns what it prints.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    ensure!(output.status.success(), "{command:?}: {}: {out}{err}", output.status);
    Ok(out)
}
