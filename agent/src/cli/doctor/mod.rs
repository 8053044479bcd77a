//! `larder doctor`: does containerd really come to us, and if not, why, and the lines that mend it.
//!
//! It begins with what the running agent's canary has proved. Then facts are gathered (`facts`), and pure functions
//! turn them into findings (`checks`): each says what is so, where it stands, why it matters, and what mends it. In a Pod
//! much of the host isn't seen (`surroundings`), and what isn't seen is never taken for missing. With `--fix` one thing is
//! mended here and now, where that is safe (`fix`).

mod checks;
mod environment;
mod facts;
mod finding;
mod fix;
mod gather;
mod hosts_file;
mod inspect;
mod mend;
mod platform;
mod proc;
mod render;
mod surroundings;

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;

pub use finding::{Finding, Mend, Outcome, Severity};

use self::fix::Consent;
use crate::config::Config;
use crate::containerd::canary;

/// The arguments of `larder doctor`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct DoctorArgs {
    /// Print the findings as JSON
    #[arg(long, conflicts_with = "fix")]
    pub json: bool,
    /// Set containerd's config_path, where it is missing and its file is plain; asks before it writes
    #[arg(long)]
    pub fix: bool,
    /// Don't ask
    #[arg(long, requires = "fix")]
    pub yes: bool,
}

/// The agent, as it answers at its admin socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agent {
    /// Nobody answers there.
    Silent,
    /// It answers, and doesn't serve yet: another process holds the cache, or it is starting.
    Waiting {
        /// Why it can't be counted upon; `None` while another agent serves, from which it will take over.
        trouble: Option<String>,
    },
    /// It serves.
    Serving(AgentView),
}

/// What the running agent says of itself, as far as doctor wants to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// The newest canary pull; `None` before the first one ended, or with the canary off.
    pub canary: Option<canary::Report>,
    /// Requests by containerd that the mirror has answered since its start, the canary's own left out.
    pub requests: u64,
    /// Hosts in the user's own files that were not taken over.
    pub left_out: Vec<LeftOut>,
    /// Why this node has no part in the cluster that is configured, where it has none.
    pub apart: Option<String>,
}

/// A host in one of the user's own files that stays with containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The file.
    pub file: PathBuf,
    /// The host, and why.
    pub what: String,
}

/// Looks at this node and prints what it finds to standard output. `agent` is what the agent said at its admin socket.
/// The exit status is 0 when all is well, 1 when there are problems, and 2 when there are none but something couldn't be
/// checked. With `--fix` it is 0 when what it mends is mended.
///
/// # Errors
/// When the configuration can't be used for a client, the output can't be written, or what `--fix` mends can't be mended
/// from here.
pub async fn run(config: &Config, agent: Agent, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let facts = gather::gather(config, agent).await?;
    let findings = checks::all(&facts);
    let mut out = std::io::stdout().lock();
    if args.json {
        render::json(&findings, &mut out)?;
    } else {
        render::text(&findings, out.is_terminal(), &mut out)?;
    }
    out.flush()?;
    let is_fixed = args.fix && fix::fix(&facts, Consent::new(args.yes), &mut out).await?;
    Ok(if is_fixed { ExitCode::SUCCESS } else { Outcome::of(&findings).exit_code() })
}
