//! `larder config`

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{environment, hosts};
use crate::config::{Config, DEFAULT_FILE, commented_default};

/// `larder config`
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read the configuration as the agent would, and say what is wrong with it
    Check,
    /// Print the default configuration, every key with its meaning
    Default,
}

/// Checks without a running agent, and changes nothing.
///
/// # Errors
/// When the configuration is wrong.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Check => {
            let config = Config::load(file, environment())?;
            match file {
                Some(file) => println!("{} is sound", file.display()),
                None if Path::new(DEFAULT_FILE).exists() => println!("{DEFAULT_FILE} is sound"),
                None => println!("there is no {DEFAULT_FILE}: the defaults and the environment, which is sound, hold"),
            }
            adopted(&config);
        }
        Command::Default => print!("{}", commented_default()),
    }
    Ok(ExitCode::SUCCESS)
}

/// What comes to the configured upstreams from elsewhere.
fn adopted(config: &Config) {
    match hosts::adopted(&config.containerd.hosts_dir, config) {
        Ok(adopted) => adopted.iter().for_each(|one| println!("taken over: {one}")),
        // Not the configuration's fault.
        Err(e) => println!("what is taken over from {} is not known: {e}", config.containerd.hosts_dir.display()),
    }
}
