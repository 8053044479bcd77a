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
    if made.is_none() {
        *made = Some(make()?);
    }
    made.clone().context("it was made")
}

/// As `make deb` does, but of the program that is tested.
fn make() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (package, release) = (folder.join("larder.deb"), folder.join("release"));
    std::fs::create_dir_all(&release)?;
    let (whole, stripped) = (program()?, release.join("larder"));
    run(Command::new("strip").arg("-o").arg(&stripped).arg(whole))?;
    run(Command::new(repository().join("systemd/papers")).arg(&stripped).arg(release.join("papers")))?;
    let mut build = Command::new(tool("cargo-deb/bin/cargo-deb")?);
    build.args(["deb", "--no-build", "--no-strip", "--fast"]).env("CARGO_TARGET_DIR", folder);
    build.arg("--manifest-path").arg(repository().join("agent/Cargo.toml")).arg("--output").arg(&package);
    run(&mut build)?;
    Ok(package)
}

/// Runs a command that must succeed; returns what it prints.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    ensure!(output.status.success(), "{command:?}: {}: {out}{err}", output.status);
    Ok(out)
}
