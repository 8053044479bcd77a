//! The container image.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::process::output_within;
use crate::{Containerd, agent, tool, until};

/// The script that makes it.
const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../daemonset/image/build");

/// Slow machines take seconds to pack a debug build.
const LIMIT: Duration = Duration::from_secs(120);

/// The image of the binary under test, which is stripped: a tenth of it is code.
#[derive(Debug)]
pub struct LarderImage {
    archive: PathBuf,
}

impl LarderImage {
    /// The name by which it is imported.
    pub const NAME: &str = concat!("ghcr.io/larder/larder:", env!("CARGO_PKG_VERSION"));

    /// The one that all tests of this process share, made when it is first asked for: an OCI archive beside the binary.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<LarderImage> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::make).await
    }

    async fn make() -> Result<Self> {
        let binary = Self::binary().await?;
        let archive = binary.with_extension("image.tar");
        // Another process may be at the same.
        let mine = binary.with_extension(format!("{}.image.tar", std::process::id()));
        Self::build(&binary, &format!("oci-archive:{}:{}", mine.display(), Self::NAME), &[]).await?;
        tokio::fs::rename(&mine, &archive).await?;
        Ok(Self { archive })
    }

    /// The binary under test without what only debuggers read, as a file of its own.
    pub async fn binary() -> Result<PathBuf> {
        static STRIPPED: OnceCell<PathBuf> = OnceCell::const_new();
        let strip = async || {
            let program = agent::program()?;
            let (mine, stripped) = (
                program.with_extension(format!("{}.stripped", std::process::id())),
                program.with_extension("stripped"),
            );
            said(Command::new("strip").arg("-o").arg(&mine).arg(&program)).await?;
            tokio::fs::rename(&mine, &stripped).await?;
            anyhow::Ok(stripped)
        };
        Ok(STRIPPED.get_or_try_init(strip).await?.clone())
    }

    /// Runs the script on any binary, with more options for it; returns what it says. `output` is a place as skopeo
    /// writes it. Without `--arch` and `--libraries` among the options, it is for amd64.
    pub async fn build(binary: &Path, output: &str, options: &[&str]) -> Result<String> {
        let mut build = Command::new(BUILD);
        build.arg("--libraries").arg(tool("image-amd64")?).arg("--binary").arg(binary);
        // The commit's time, whatever the tests run in.
        said(build.args(["--output", output]).args(options).env_remove("SOURCE_DATE_EPOCH")).await
    }

    /// The OCI archive.
    pub fn archive(&self) -> &Path {
        &self.archive
    }

    /// Imports it as [`LarderImage::NAME`], and waits until CRI lists it.
    pub async fn import_into(&self, containerd: &Containerd) -> Result<()> {
        let archive = self.archive.to_str().context("the build folder isn't UTF-8")?;
        containerd.ctr_of_cri(&["images", "import", archive]).await?;
        // It hears of it by an event.
        let listed = async || containerd.images().await.ok()?.iter().any(|name| name == Self::NAME).then_some(());
        until("CRI lists the image", Duration::from_secs(20), listed).await
    }
}

/// Runs a program to its end; returns what it prints. An error is what it says on standard error.
async fn said(command: &mut Command) -> Result<String> {
    let output = output_within(LIMIT, command).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}", command.as_std(), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
