//! containerd's own command.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::Namespace;

/// `ctr`, for one containerd.
#[derive(Debug, Clone)]
pub struct Ctr {
    pub(super) program: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) network: Option<Namespace>,
}

impl Ctr {
    /// Runs it in one of containerd's namespaces, and returns what it prints. An error is what it says on standard error.
    /// It is killed when this future is dropped.
    pub async fn run(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        let mut command = match self.network.as_ref().map(Namespace::wrapper) {
            None => Command::new(&self.program),
            Some([wrapper, options @ ..]) => {
                let mut command = Command::new(wrapper);
                command.args(options).arg(&self.program);
                command
            }
        };
        command.arg("--address").arg(&self.socket).args(["--namespace", namespace]).args(arguments).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(60), command.output())
            .await
            .with_context(|| format!("ctr {arguments:?} hangs"))??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {arguments:?}: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
