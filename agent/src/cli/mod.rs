//! The commands. Each has a file with its arguments and what it does; this one tells them apart.

pub mod cache;
pub mod certs;
pub mod completions;
pub mod config;
pub mod doctor;
pub mod hosts;
pub mod images;
mod log;
pub mod man;
pub mod prefetch;
pub mod run;
pub mod status;
mod table;
pub mod uninstall;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::admin::{Client, ClientError};
use crate::config::Config;
use crate::mirror::Identity;
use crate::peers::ShownPart;

/// Makes container image pulls survive: a mirror on every node, with a cache, that containerd pulls through.
#[derive(Debug, Parser)]
#[command(name = "larder", version, propagate_version = true)]
struct Arguments {
    /// The configuration; without it, /etc/larder/larder.toml if it is there, else the defaults
    #[arg(long, global = true, value_name = "FILE", env = "LARDER_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run(run::Arguments),
    /// Show the images that run here, and whether each could still be pulled if its registry died now
    Images(images::Arguments),
    /// Show what the agent is doing
    Status(status::Arguments),
    /// Write, take back or show the entries in containerd's hosts folder
    Hosts(hosts::HostsArgs),
    /// Find out whether containerd really comes to us, and if not, why
    Doctor(doctor::DoctorArgs),
    /// Fetch images into the cache now, before anything needs them
    Prefetch(prefetch::Arguments),
    /// Show, check or shrink what is kept
    Cache(cache::Arguments),
    /// Make or rotate the certificate authority by which nodes know each other
    Certs(certs::Arguments),
    /// Check the configuration, or print the default one
    Config(config::Arguments),
    /// Take back all that was made on this node: entries in the hosts folder, the cache, sockets
    Uninstall(uninstall::Arguments),
    /// Print what completes our arguments in a shell
    Completions(completions::Arguments),
    /// Write the manual, a page a command
    #[command(hide = true)]
    Man(man::Arguments),
}

/// Runs the command that the arguments name. Errors go to standard error, with their causes.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("larder: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let file = arguments.config;
    match &arguments.command {
        Command::Config(config) => return config::run(config, file.as_deref()),
        Command::Certs(certs) => return certs::run(certs),
        Command::Completions(completions) => return completions::run(completions, Arguments::command()),
        Command::Man(man) => return man::run(man, Arguments::command()),
        _ => {}
    }
    let config = Config::load(file.as_deref(), environment());
    if let Command::Status(status::Arguments { probe: Some(probe), .. }) = &arguments.command {
        let socket = config.unwrap_or_default().admin.socket;
        return status::probe(*probe, &socket);
    }
    let config = config?;
    match arguments.command {
        Command::Run(run) => run::run(&run, &config, file.as_deref()),
        Command::Images(images) => images::run(&images, &config),
        Command::Status(status) => status::run(&status, &config),
        Command::Hosts(hosts) => {
            let ca = mirror_ca(&config)?;
            hosts::run(&hosts, &config, ca).map(|()| ExitCode::SUCCESS)
        }
        Command::Doctor(doctor) => block_on(async {
            let agent = agent(&config.admin.socket).await;
            doctor::run(&config, agent, doctor).await
        })?,
        Command::Prefetch(prefetch) => prefetch::run(&prefetch, &config),
        Command::Cache(cache) => cache::run(&cache, &config),
        Command::Uninstall(uninstall) => uninstall::run(&uninstall, &config),
        Command::Config(_) | Command::Certs(_) | Command::Completions(_) | Command::Man(_) => Ok(ExitCode::SUCCESS),
    }
}

/// The agent at `socket` and what it knows, a canary pull of this moment included.
async fn agent(socket: &Path) -> doctor::Agent {
    let agent = Client::new(socket);
    let status = match agent.status().await {
        Ok(status) => status,
        Err(ClientError::NotServing(_)) => {
            return doctor::Agent::Waiting { trouble: agent.ready().await.err().map(|error| error.to_string()) };
        }
        Err(_) => return doctor::Agent::Silent,
    };
    let left_out = |adopted: crate::admin::view::Adopted| {
        let file = adopted.file;
        adopted.left_out.into_iter().map(move |what| doctor::LeftOut { file: file.clone(), what })
    };
    let left_out = status.adopted.into_iter().flat_map(left_out).collect();
    doctor::Agent::Serving(doctor::AgentView {
        canary: agent.prove().await.ok(),
        requests: status.mirror.requests,
        left_out,
        apart: match agent.peers().await {
            Ok(ShownPart::Apart { apart }) => Some(apart),
            Ok(ShownPart::Joined(_) | ShownPart::Off) | Err(_) => None,
        },
    })
}

/// The CA that hosts.toml pins, made now if there is none yet; `None` where the mirror is named by plain HTTP.
fn mirror_ca(config: &Config) -> anyhow::Result<Option<String>> {
    if !config.mirror.tls {
        return Ok(None);
    }
    let identity = Identity::open(&config.cache.dir.join("tls"), config.mirror.listen)?;
    let trusted = identity.trusted().borrow().clone();
    Ok(Some(trusted))
}

/// The environment as far as it is text.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// A runtime for a command that asks something and ends.
fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::doctor::Agent;
    use super::*;
    use crate::admin::{Socket, Standing};

    #[tokio::test]
    async fn an_agent_that_waits_is_told_from_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("larder.sock");
        assert_eq!(agent(&path).await, Agent::Silent);
        let (standing, stop) = (watch::Sender::new(Standing::Waiting { is_served: true }), CancellationToken::new());
        let serving = tokio::spawn(Socket::bind(&path).unwrap().serve(standing.subscribe(), stop.clone()));
        assert_eq!(agent(&path).await, Agent::Waiting { trouble: None });
        standing.send_replace(Standing::Waiting { is_served: false });
        let Agent::Waiting { trouble: Some(why) } = agent(&path).await else { panic!("it can't be counted upon") };
        assert!(why.contains("nobody serves containerd"), "{why}");
        stop.cancel();
        serving.await.unwrap();
    }
}
