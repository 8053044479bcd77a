//! containerd's own command.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::Namespace;

/// Runs it, and returns what it prints. An error is what it says on standard error.
pub(super) async fn run(
    network: Option<&Namespace>,
    program: &Path,
    socket: &Path,
    namespace: &str,
    arguments: &[&str],
) -> Result<String> {
    let mut command = match network.map(Namespace::wrapper) {
        None => Command::new(program),
        Some([wrapper, options @ ..]) => {
            let mut command = Command::new(wrapper);
            command.args(options).arg(program);
            command
        }
    };
    command.arg("--address").arg(socket).args(["--namespace", namespace]).args(arguments).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .with_context(|| format!("ctr {arguments:?} hangs"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctr {arguments:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
