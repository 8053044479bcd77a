use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use toml::{Table, Value};

use super::plan::Plan;
use crate::cli::doctor::facts::{Facts, same_path};

/// It reads a file and ends.
const DEADLINE: Duration = Duration::from_secs(20);
/// Where packages and people put it.
const PROGRAMS: [&str; 2] = ["/usr/bin/containerd", "/usr/local/bin/containerd"];

/// Lets containerd itself read the new file, from where it lies: `containerd config dump` starts nothing. What came of
/// it, for people.
///
/// # Errors
/// When containerd can't read it, or makes something else of it.
pub(super) async fn check(facts: &Facts, plan: &Plan, draft: &Path) -> anyhow::Result<String> {
    let Some(program) = program(facts) else {
        return Ok("containerd's program wasn't found to check it".to_owned());
    };
    let mut command = tokio::process::Command::new(&program);
    command.arg("--config").arg(draft).args(["config", "dump"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output());
    let output = output.await.with_context(|| format!("{} hangs", program.display()))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} refuses it: {}", program.display(), said.trim());
    let dumped: Table = std::str::from_utf8(&output.stdout)?.parse().context("what it prints is no TOML")?;
    if !config_paths(&dumped).any(|path| same_path(Path::new(path), &plan.folder)) {
        bail!("{} doesn't take config_path from it", program.display());
    }
    Ok("containerd config dump agrees".to_owned())
}

/// The program that runs, or the one that would be started.
fn program(facts: &Facts) -> Option<PathBuf> {
    let running = facts.runtime.program.iter().map(PathBuf::as_path);
    running.chain(PROGRAMS.map(Path::new)).find(|path| path.is_file()).map(Path::to_owned)
}

/// Of whichever plugin has one.
fn config_paths(dumped: &Table) -> impl Iterator<Item = &str> {
    let plugins = dumped.get("plugins").and_then(Value::as_table);
    plugins
        .into_iter()
        .flat_map(Table::values)
        .filter_map(|plugin| plugin.get("registry")?.get("config_path")?.as_str())
}
