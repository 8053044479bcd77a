//! containerd's own command.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::process::Command;

use crate::Namespace;
use crate::process::output_within;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(60);

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
        command.arg("--address").arg(&self.socket).args(["--namespace", namespace]).args(arguments);
        let output = output_within(LIMIT, &mut command).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {arguments:?}: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
