//! The Debian package, of the program that is tested, made once.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use larder_integration::{LarderImage, say, tool};
use tokio::sync::OnceCell;

/// This repository.
pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The package as a file.
pub(super) async fn package() -> Result<&'static Path> {
    static MADE: OnceCell<PathBuf> = OnceCell::const_new();
    Ok(MADE.get_or_try_init(make).await?)
}

/// As `make deb` does, but of the program that is tested.
async fn make() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (package, release) = (folder.join("larder.deb"), folder.join("release"));
    std::fs::create_dir_all(&release)?;
    let program = release.join("larder");
    std::fs::copy(LarderImage::binary().await?, &program)?;
    say(Command::new(repository().join("systemd/papers")).arg(&program).arg(release.join("papers")))?;
    let mut build = Command::new(tool("cargo-deb/bin/cargo-deb")?);
    build.args(["deb", "--no-build", "--no-strip", "--fast"]).env("CARGO_TARGET_DIR", folder);
    build.arg("--manifest-path").arg(repository().join("agent/Cargo.toml")).arg("--output").arg(&package);
    say(&mut build)?;
    Ok(package)
}
