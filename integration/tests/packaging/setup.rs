//! A machine without what nobody can install for its user.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};

/// What the script needs before it knows of Rust, and nothing that installs.
const PROGRAMS: [&str; 6] = ["bash", "dirname", "sed", "cut", "sort", "head"];

/// A folder with those programs alone, and a `cargo` that says so, if any.
fn path(dir: &Path, cargo: Option<&str>) -> Result<()> {
    for program in PROGRAMS {
        let found = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(program)).into_iter().find(|p| p.exists());
        symlink(found.ok_or_else(|| anyhow::anyhow!("no {program}"))?, dir.join(program))?;
    }
    if let Some(says) = cargo {
        let cargo = dir.join("cargo");
        std::fs::write(&cargo, format!("#!/usr/bin/env bash\n{says}\n"))?;
        std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn set_up(cargo: Option<&str>) -> Result<Output> {
    let dir = tempfile::tempdir()?;
    path(dir.path(), cargo)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup");
    let mut command = Command::new(dir.path().join("bash"));
    command.arg(script).arg("--build").env_clear();
    Ok(command.env("PATH", dir.path()).env("LARDER_TOOLS", dir.path().join("tools")).output()?)
}

#[test]
fn without_rust_it_is_said_what_to_do_before_anything_is_done() -> Result<()> {
    for (cargo, said) in [
        (None, "is missing"),
        (Some("echo 'cargo 1.85.0 (d73d2caf9 2024-12-31)'"), "Rust is 1.85.0 here"),
        (Some("echo 'no toolchain' >&2; exit 1"), "doesn't run"),
    ] {
        let output = set_up(cargo)?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{cargo:?}: {output:?}");
        ensure!(text.contains(said) && text.contains("https://rustup.rs"), "{cargo:?}: {text}");
    }
    Ok(())
}
