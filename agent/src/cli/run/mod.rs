//! `larder run`: the agent, and beside it a process that watches it.
//!
//! A mirror that accepts connections and answers nothing is worse than none: containerd before 2.3 waits for ever. So
//! the process that is started runs nothing but a watch over the agent, its child: it asks the mirror's own port and
//! ends the agent when no answer comes, whatever it hangs in. A thread within the agent could not do that for a process
//! that is stopped or starved as a whole, and in a container PID 1 could not be ended from within.

mod agent;
mod join;
mod notify;
mod takeover;
mod watch;
mod word;

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

pub(super) use self::takeover::NAME as TAKEOVER;
use self::word::Teller;
use super::log;
use crate::config::Config;

/// `larder run`
#[derive(Debug, Args)]
pub struct Arguments {
    /// Run the agent alone, in this process, without the process that watches it
    #[arg(long)]
    unwatched: bool,
    /// Tell the process that watches, through standard input, how far it is
    #[arg(long, hide = true, requires = "unwatched")]
    telling: bool,
}

/// Runs until a signal ends it.
///
/// # Errors
/// When the agent can't start: the mirror's port is taken, a CA file can't be read.
pub fn run(arguments: &Arguments, config: &Config, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    log::begin(&config.log)?;
    if arguments.unwatched { agent::run(config, Teller::new(arguments.telling)) } else { watch::run(config, file) }
}
