//! `larder man`: what packages run to get the manual; people read it with `man larder`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

/// `larder man`
#[derive(Debug, Args)]
pub struct Arguments {
    /// A folder for the pages: larder.1, larder-run.1 and so on
    dir: PathBuf,
}

/// Writes a page for `command` and for each command below it.
///
/// # Errors
/// When the folder can't be written to.
pub fn run(arguments: &Arguments, command: clap::Command) -> anyhow::Result<ExitCode> {
    let dir = &arguments.dir;
    clap_mangen::generate_to(command, dir).with_context(|| format!("writing the manual to {}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
