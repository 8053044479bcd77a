//! `larder cache`

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::block_on;
use crate::admin::view::{Checked, Kept};
use crate::admin::{Client, ClientError, Rows, check, kept};
use crate::config::{Bytes, Config};
use crate::store::{self, Store};

/// `larder cache`
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the blobs that are kept, by size
    Ls {
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Hash every blob; what is not what its name says is taken out of service
    Verify,
    /// Bring the cache below its low marks now, the least recently used first
    Gc,
}

/// Asks the running agent; without one, looks into the folder itself.
///
/// # Errors
/// When the agent doesn't answer, or there is none and the folder can't be opened.
pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    block_on(async {
        match arguments.command {
            Command::Ls { json } => list(config, json).await,
            Command::Verify => verify(config).await,
            Command::Gc => collect(config).await,
        }
    })?
}

async fn list(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let mut rows = Vec::new();
    match Client::new(&config.admin.socket).kept(|row| rows.push(row)).await {
        Ok(()) => {}
        Err(ClientError::NoAgent { .. }) => {
            let store = open(config).await?;
            let mut blobs = Rows::default();
            while let Some(blob) = blobs.next(&store).await {
                rows.push(kept(&store, blob).await);
            }
            store.close().await;
        }
        Err(e) => return Err(e.into()),
    }
    rows.sort_by(|a, b| b.size.cmp(&a.size).then(a.digest.cmp(&b.digest)));
    let mut out = std::io::stdout().lock();
    for row in &rows {
        if json {
            writeln!(out, "{}", serde_json::to_string(row)?)?;
        } else {
            writeln!(out, "{}", text(row))?;
        }
    }
    if !json {
        let bytes = rows.iter().map(|row| row.size).sum();
        writeln!(out, "{} blobs, {}", rows.len(), Bytes(bytes))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(row: &Kept) -> String {
    let used = i64::try_from(row.last_used).ok().filter(|&at| at > 0).and_then(|at| Timestamp::from_second(at).ok());
    let used = used.map_or("-".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M").to_string());
    let repositories = if row.repositories.is_empty() { "-".to_owned() } else { row.repositories.join(",") };
    format!("{}  {:>10}  {used:<16}  {repositories}", row.digest, Bytes(row.size).to_string())
}

async fn verify(config: &Config) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::default();
    match Client::new(&config.admin.socket).verify(|row| progress.row(&row)).await {
        Ok(()) => {}
        Err(ClientError::NoAgent { .. }) => {
            let store = open(config).await?;
            let mut blobs = Rows::default();
            while let Some(blob) = blobs.next(&store).await {
                if let Some(row) = check(&store, &blob).await {
                    progress.row(&row);
                }
            }
            store.close().await;
        }
        Err(e) => return Err(e.into()),
    }
    Ok(progress.end())
}

async fn collect(config: &Config) -> anyhow::Result<ExitCode> {
    let (blobs, bytes) = match Client::new(&config.admin.socket).collect().await {
        Ok(collected) => (collected.blobs, collected.bytes),
        Err(ClientError::NoAgent { .. }) => {
            let store = open(config).await?;
            let (bytes, blobs) = crate::keep::collect(&store).await;
            store.close().await;
            (blobs, bytes)
        }
        Err(e) => return Err(e.into()),
    };
    println!("{blobs} blobs removed, {} freed", Bytes(bytes));
    Ok(ExitCode::SUCCESS)
}

/// What was checked so far; on a terminal it is shown while it grows.
#[derive(Default)]
struct Progress {
    blobs: u64,
    bytes: u64,
    wrong: u64,
}

impl Progress {
    fn row(&mut self, row: &Checked) {
        self.blobs += 1;
        self.bytes += row.bytes;
        if let Some(wrong) = &row.wrong {
            self.wrong += 1;
            eprintln!("\r{}: {wrong}", row.digest);
        }
        if std::io::stderr().is_terminal() {
            eprint!("\r{} blobs, {} checked ", self.blobs, Bytes(self.bytes));
        }
    }

    fn end(&self) -> ExitCode {
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
        println!("{} blobs, {} checked, {} wrong", self.blobs, Bytes(self.bytes), self.wrong);
        if self.wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

async fn open(config: &Config) -> anyhow::Result<Store> {
    let dir = config.cache.dir.clone();
    anyhow::ensure!(dir.is_dir(), "there is no cache in {}, and no agent runs", dir.display());
    let options = store::Options::from(&config.cache);
    let opened = tokio::task::spawn_blocking(move || Store::open(options)).await?;
    opened.with_context(|| format!("the cache in {}", dir.display()))
}
