//! Where `integration/setup` put what the tests run.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// A containerd that the scenarios run on, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Release {
    /// Debian bookworm's: 1.6.
    Bookworm,
    /// Debian trixie's: 1.7.
    Trixie,
    /// Debian sid's: 2.1 when this was written.
    Sid,
    /// Built from source, where Go was there.
    Newest,
}

impl Release {
    /// Its program, `containerd` or `ctr`.
    pub fn program(self, name: &str) -> Result<PathBuf> {
        tool(&format!("{self}/usr/bin/{name}"))
    }

    /// Its version as the package names it: `1.6.20~ds1-1+deb12u3`.
    pub fn version(self) -> Result<String> {
        let path = tool(&format!("{self}/VERSION"))?;
        Ok(std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?.trim().to_owned())
    }

    /// The first two numbers of its version.
    pub fn minor(self) -> Result<(u32, u32)> {
        let version = self.version()?;
        let mut numbers = version.split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
            _ => anyhow::bail!("{self}: no version: {version}"),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bookworm => "containerd-bookworm",
            Self::Trixie => "containerd-trixie",
            Self::Sid => "containerd-sid",
            Self::Newest => "containerd-newest",
        })
    }
}

/// A file below the tools folder: `.tools/` of the repository, or `$LARDER_TOOLS`.
pub fn tool(path: &str) -> Result<PathBuf> {
    let tools = std::env::var_os("LARDER_TOOLS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.tools"), PathBuf::from);
    let file = tools.join(path);
    file.canonicalize().with_context(|| format!("{} isn't there: run integration/setup", file.display()))
}

/// Fails unless we are root: containerd mounts what it unpacks.
pub fn require_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this test runs containerd, which takes root: run make test as root");
    Ok(())
}
