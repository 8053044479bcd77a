//! stub
use std::process::ExitCode;
use clap::Args;
use crate::config::Config;
/// x
#[derive(Debug, Args)]
pub struct Arguments {}
/// x
/// # Errors
/// x
pub fn run(_: &Arguments, _: &Config) -> anyhow::Result<ExitCode> { Ok(ExitCode::SUCCESS) }
