use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Begins to log to standard error: for people on a terminal, one JSON object a line elsewhere.
pub(super) fn begin(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.level).with_context(|| format!("level = {:?} in [log]", log.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    let text = match log.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    if text {
        builder.with_ansi(terminal).with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_target(false).with_current_span(false).init();
    }
    Ok(())
}
