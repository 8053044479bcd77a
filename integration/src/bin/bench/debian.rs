//! An image of a Debian root filesystem, made once by debootstrap and kept with the tools.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use larder_integration::{Folder, Image, digest_of, tool};

/// bookworm, with what every Debian has: some 300 MiB, 100 as gzip.
pub(super) fn image() -> Result<Image> {
    let tools = tool("")?;
    let (kept, diff_id) = (tools.join("debian.tar.gz"), tools.join("debian.diff-id"));
    if !diff_id.exists() {
        make(&kept, &diff_id)?;
    }
    let gzip = std::fs::read(&kept).with_context(|| format!("reading {}", kept.display()))?;
    let diff_id = std::fs::read_to_string(&diff_id)?;
    Ok(Image::builder(1).given_layer(gzip.into(), diff_id).build())
}

fn make(kept: &Path, diff_id: &Path) -> Result<()> {
    println!("making a Debian root filesystem with debootstrap: a minute or two, once");
    let folder = Folder::new()?;
    let (root, tar) = (folder.path().join("root"), folder.path().join("layer.tar"));
    run(Command::new("debootstrap").args(["--variant=minbase", "bookworm"]).arg(&root))?;
    run(Command::new("tar").arg("--create").arg("--file").arg(&tar).arg("--directory").arg(&root).arg("."))?;
    let digest = digest_of(&std::fs::read(&tar)?);
    run(Command::new("gzip").arg(&tar))?;
    std::fs::copy(folder.path().join("layer.tar.gz"), kept)?;
    // The last: with it, both are whole.
    std::fs::write(diff_id, digest)?;
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
