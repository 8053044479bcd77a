//! `larder doctor`: does containerd really come to us, and if not, why, and the lines that mend it.
//!
//! It begins with what the running agent's canary has proved. Then facts are gathered (`facts`), and pure functions
//! turn them into findings (`checks`): each says what is so, where it stands, why it matters, and what mends it.

mod checks;
mod facts;
mod finding;
mod gather;
mod hosts_file;
mod mend;
mod platform;
mod proc;
mod render;

use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

pub use finding::{Finding, Mend, Outcome, Severity};

use crate::config::Config;
use crate::containerd::canary;

/// The arguments of `larder doctor`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct DoctorArgs {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// What the running agent says of itself, as far as doctor wants to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    /// The newest canary pull; `None` before the first one ended, or with the canary off.
    pub canary: Option<canary::Report>,
    /// Requests by containerd that the mirror has answered since its start, the canary's own left out.
    pub requests: u64,
}

/// Looks at this node and prints what it finds to standard output. `agent` is what the agent said at its admin socket;
/// `None` where it didn't answer. The exit status is 0 when all is well, 1 when there are problems, and 2 when there
/// are none but something couldn't be checked.
///
/// # Errors
/// When the configuration can't be used for a client, or the output can't be written.
pub async fn run(config: &Config, agent: Option<AgentView>, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let findings = examine(config, agent).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        render::json(&findings, &mut out)?;
    } else {
        render::text(&findings, out.is_terminal(), &mut out)?;
    }
    out.flush()?;
    Ok(Outcome::of(&findings).exit_code())
}

/// Looks at this node. Takes at most about half a minute, when nothing answers.
///
/// # Errors
/// When the configuration can't be used for a client.
pub async fn examine(config: &Config, agent: Option<AgentView>) -> anyhow::Result<Vec<Finding>> {
    let facts = gather::gather(config, agent).await?;
    Ok(checks::all(&facts))
}
