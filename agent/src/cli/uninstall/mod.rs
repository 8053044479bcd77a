//! `larder uninstall`: takes back all that Larder has made on this node.
//!
//! What containerd reads goes first and whole: every hosts.toml is put back as it was, byte for byte. Then the cache, the
//! lock in it last, and the sockets and files elsewhere. Only names that Larder gives are removed; whatever else lies in
//! its folders stays, and is named. All of it can be said again: what is gone already is no error.

mod nodes;
mod remove;
mod traces;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use self::nodes::Nodes;
use self::remove::Removed;
use self::traces::Traces;
use super::{block_on, hosts};
use crate::admin::Client;
use crate::config::Config;
use crate::store::Hold;

/// Between two looks of one that stays.
const EVERY: Duration = Duration::from_secs(10);

/// `larder uninstall`
#[derive(Debug, Args)]
pub struct Arguments {
    /// Leave the cache where it is, for an agent that will be installed again
    #[arg(long)]
    keep_cache: bool,
    /// Wait so long for an agent that runs here to end, in the place of refusing
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with_all = ["linger", "check"])]
    wait: Option<Duration>,
    /// Wait for the agent's end as long as it takes, do it, and stay until told to end
    #[arg(long, conflicts_with = "check")]
    linger: bool,
    /// Change nothing: name what is left of Larder on this node, and succeed when that is nothing
    #[arg(long)]
    check: bool,
    /// Change nothing: wait until the headless Services NAME (ready Pods) and NAME-all (all of them) list the same nodes
    #[arg(long = "await", value_name = "NAME", conflicts_with_all = ["keep_cache", "wait", "linger", "check"])]
    nodes: Option<String>,
    /// How long to wait for them; those that aren't done then are named
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5m", requires = "nodes")]
    timeout: Duration,
    /// Fail when not all of them are done in time
    #[arg(long, requires = "nodes")]
    strict: bool,
}

/// Does it, and says what was done.
///
/// # Errors
/// When an agent runs here, or something couldn't be taken back; what could be is, and was said.
pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let work = async {
        match arguments {
            Arguments { nodes: Some(name), timeout, strict, .. } => wait_for_nodes(name, *timeout, *strict).await,
            Arguments { check: true, keep_cache, .. } => check(config, *keep_cache),
            Arguments { linger: true, keep_cache, .. } => linger(config, *keep_cache).await,
            Arguments { keep_cache, wait, .. } => {
                once(config, *keep_cache, wait.unwrap_or_default()).await.map(|()| ExitCode::SUCCESS)
            }
        }
    };
    block_on(work)?
}

async fn wait_for_nodes(name: &str, timeout: Duration, strict: bool) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::wait(name, timeout).await;
    if nodes.are_done() {
        return Ok(ExitCode::SUCCESS);
    }
    let left: Vec<_> = nodes.left().map(ToString::to_string).collect();
    let timeout = humantime::format_duration(timeout);
    if left.is_empty() {
        println!("no node has shown itself within {timeout}");
    } else {
        println!("not clean within {timeout}: {}", left.join(", "));
    }
    println!("what is left on a node goes on to work: containerd goes past the agent that isn't there");
    Ok(if strict { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn check(config: &Config, keep_cache: bool) -> anyhow::Result<ExitCode> {
    let left = Traces::find(config, keep_cache)?;
    left.all().for_each(|path| println!("{}", path.display()));
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Stays, for a Pod that must not be started again once it is done; what comes back meanwhile goes again.
async fn linger(config: &Config, keep_cache: bool) -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let work = async {
        let mut is_first = true;
        loop {
            let is_left = || Traces::find(config, keep_cache).map_or(true, |left| !left.is_empty());
            if is_first || is_left() {
                if let Err(error) = once(config, keep_cache, Duration::MAX).await {
                    eprintln!("larder: {error:#}; it is tried again");
                }
                is_first = false;
            }
            sleep(EVERY).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn once(config: &Config, keep_cache: bool, patience: Duration) -> anyhow::Result<()> {
    let hold = until_free(config, patience).await?;
    // Looked for only now: an agent that was about to end has removed some of it by itself.
    let found = Traces::find(config, keep_cache)?;
    // What containerd reads first, and every file of it that can be: an error is no reason to leave the rest.
    let restored = hosts::restore(&mut io::stdout().lock(), &config.containerd.hosts_dir);
    let mut removed = Removed::default();
    removed.all(&found.cache);
    if !keep_cache {
        removed.folder(&config.cache.dir);
    }
    drop(hold);
    removed.all(&found.elsewhere);
    if let Some(folder) = config.admin.socket.parent().filter(|folder| folder.ends_with("larder")) {
        removed.folder(folder);
    }
    say(config, keep_cache, &removed);
    restored?;
    match removed.failed.len() {
        0 => Ok(()),
        failed => bail!("{failed} files could not be removed"),
    }
}

/// Waits until no agent works on this node, and keeps others from it.
async fn until_free(config: &Config, patience: Duration) -> anyhow::Result<Option<Hold>> {
    let (begun, dir) = (Instant::now(), &config.cache.dir);
    let mut has_said = false;
    loop {
        let dir = dir.clone();
        let take = move || {
            // Where nothing is there to be held, no lock is left behind: it may be a folder of somebody else's.
            anyhow::Ok(if traces::has_cache(&dir)? { Hold::take(&dir) } else { Ok(None) })
        };
        let why = match tokio::task::spawn_blocking(take).await?? {
            // Where it has no folder that it could hold.
            Ok(hold) if Client::new(&config.admin.socket).live().await.is_err() => return Ok(hold),
            Ok(_) => anyhow::anyhow!("an agent answers at {}", config.admin.socket.display()),
            Err(error) => error.into(),
        };
        if begun.elapsed() >= patience {
            return Err(why).context("an agent runs on this node: stop it first, or wait for it with --wait");
        }
        if !has_said {
            println!("an agent runs on this node: waiting for its end");
            has_said = true;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn say(config: &Config, keep_cache: bool, removed: &Removed) {
    let dir = config.cache.dir.display();
    match removed.gone {
        0 => println!("nothing else of larder's is on this node"),
        gone => println!("{gone} files and folders are removed"),
    }
    if keep_cache {
        println!("the cache in {dir} is kept");
    }
    for path in &removed.foreign {
        println!("left, since it isn't larder's: {}", path.display());
    }
    for (path, error) in &removed.failed {
        println!("left, since it can't be removed: {}: {error}", path.display());
    }
}
