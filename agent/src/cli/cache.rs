//! `larder cache`

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::block_on;
use crate::admin::view::{Checked, Collected, Kept};
use crate::admin::{Client, ClientError, KeptImages, KeptRest, Rows, check, kept};
use crate::config::{Bytes, Config};
use crate::keep::Shelf;
use crate::store::{self, Store, Stuck};

/// `larder cache`
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the images that are kept: why, and until when
    Ls {
        /// Blob by blob instead, by size
        #[arg(long)]
        blobs: bool,
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Hash every blob; what is not what its name says is taken out of service
    Verify,
    /// Bring the cache below its low marks now: unused images first, the least recently used of them first
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
}

/// Asks the running agent; without one, looks into the folder itself.
///
/// # Errors
/// When the agent doesn't answer, or there is none and the folder can't be opened.
pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    block_on(async {
        match arguments.command {
            Command::Ls { blobs: false, json } => list_images(config, json).await,
            Command::Ls { blobs: true, json } => list_blobs(config, json).await,
            Command::Verify => verify(config).await,
            Command::Gc { dry_run } => collect(config, dry_run).await,
        }
    })?
}

async fn list_images(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let kept = match Client::new(&config.admin.socket).kept_images().await {
        Ok(kept) => kept,
        Err(ClientError::NoAgent { .. }) => {
            let store = open(config).await?;
            let shelf = Shelf::look(store.clone(), &config.cache).await;
            let kept = KeptImages::of(shelf.catalog(), shelf.rest().await);
            store.close().await;
            kept
        }
        Err(e) => return Err(e.into()),
    };
    let mut out = std::io::stdout().lock();
    if json {
        for image in &kept.images {
            writeln!(out, "{}", serde_json::to_string(image)?)?;
        }
    } else {
        write!(out, "{}", table(&kept))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The images as a table, and a line on what else is there.
fn table(kept: &KeptImages) -> String {
    let mut rows = vec![["IMAGE", "WHY", "UNTIL", "SIZE", "OWN", "MISSING", "LAST USED"].map(str::to_owned)];
    for image in &kept.images {
        let why = match image.used_by.as_slice() {
            [] => image.why.clone(),
            [user] => format!("{}: {user}", image.why),
            [user, more @ ..] => format!("{}: {user} and {} more", image.why, more.len()),
        };
        let missing = match (image.missing, image.whole) {
            (0, true) => "-".to_owned(),
            (0, false) => "unknown".to_owned(),
            (bytes, _) => Bytes(bytes).to_string(),
        };
        let until = image.until.map_or("-".to_owned(), moment);
        let (size, own) = (Bytes(image.size).to_string(), Bytes(image.own).to_string());
        rows.push([image.image.to_string(), why, until, size, own, missing, moment(image.last_used)]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let KeptRest { manifests, blobs, bytes } = kept.rest;
    if blobs > 0 {
        text.push_str(&format!("and {blobs} blobs of no image known here ({manifests} manifests), {}\n", Bytes(bytes)));
    }
    if !kept.is_complete {
        text.push_str("containerd wasn't asked: what is in use is as it was remembered\n");
    }
    text
}

fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M").to_string()
}

async fn list_blobs(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let mut rows = Vec::new();
    match Client::new(&config.admin.socket).kept(|row| rows.push(row)).await {
        Ok(()) => {}
        Err(ClientError::NoAgent { .. }) => {
            let store = open(config).await?;
            let mut blobs = Rows::default();
            while let Some(blob) = blobs.next(&store).await? {
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
    let used = used.map_or("-".to_owned(), moment);
    let repositories = if row.repositories.is_empty() { "-".to_owned() } else { row.repositories.join(",") };
    format!("{}  {:>10}  {used:<16}  {repositories}", row.digest, Bytes(row.size).to_string())
}

async fn verify(config: &Config) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::default();
    let checked = match Client::new(&config.admin.socket).verify(|row| progress.row(&row)).await {
        Err(ClientError::NoAgent { .. }) => {
            let store = open(config).await?;
            let checked = check_all(&store, &mut progress).await;
            store.close().await;
            checked.map_err(Into::into)
        }
        checked => checked.map_err(anyhow::Error::from),
    };
    let end = progress.end();
    checked.context("not every blob was checked").map(|()| end)
}

async fn check_all(store: &Store, progress: &mut Progress) -> Result<(), Stuck> {
    let mut blobs = Rows::default();
    while let Some(blob) = blobs.next(store).await? {
        if let Some(row) = check(store, &blob).await {
            progress.row(&row);
        }
    }
    Ok(())
}

async fn collect(config: &Config, dry_run: bool) -> anyhow::Result<ExitCode> {
    let collected = match Client::new(&config.admin.socket).collect(dry_run).await {
        Ok(collected) => collected,
        Err(ClientError::NoAgent { .. }) => {
            let store = open(config).await?;
            let collected = Shelf::look(store.clone(), &config.cache).await.collect(dry_run).await;
            store.close().await;
            Collected::from(&collected)
        }
        Err(e) => return Err(e.into()),
    };
    for goes in &collected.goes {
        println!("{} {}: {} blobs, {}", goes.kind, goes.what, goes.blobs, Bytes(goes.bytes));
    }
    let (removed, freed) = if dry_run { ("would be removed", "would be free") } else { ("removed", "freed") };
    println!("{} blobs {removed}, {} {freed}", collected.blobs, Bytes(collected.bytes));
    if collected.left > 0 {
        println!("{} more should go, and nothing of what is here may", Bytes(collected.left));
    }
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;
    use crate::admin::view::Failed;
    use crate::image::Digest;

    /// What the command says of an agent that answers so.
    async fn verified(lines: &[String]) -> anyhow::Result<ExitCode> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("larder.sock");
        let config: Config = toml::from_str(&format!("[admin]\nsocket = {socket:?}")).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let body = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).await.unwrap();
            stream
        };
        let (said, _stream) = tokio::join!(verify(&config), answer);
        said
    }

    #[tokio::test]
    async fn what_was_not_checked_to_the_end_is_not_sound() {
        let row = Checked { digest: Digest::of(b"x"), bytes: 1, wrong: None };
        let row = serde_json::to_string(&row).unwrap();
        let failed = serde_json::to_string(&Failed { error: Stuck.to_string() }).unwrap();
        assert!(verified(std::slice::from_ref(&row)).await.is_ok());
        let error = verified(&[row, failed]).await.unwrap_err();
        assert!(format!("{error:#}").contains("the cache's disk does not answer"), "{error:#}");
    }
}
