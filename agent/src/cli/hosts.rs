//! `larder hosts`: the entries in containerd's `hosts_dir`, written, taken back and shown.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::admin::view::{self, Adopted};
use crate::config::Config;
use crate::containerd::client::{Client, Version};
use crate::containerd::hosts::{Entry, HostsDir, HostsError, Original, Outcome, Shown, State, Undone};

/// `larder hosts …`
#[derive(Debug, clap::Args)]
pub struct HostsArgs {
    /// The folder that containerd's `config_path` names, in the place of the configured one.
    #[arg(long, global = true, value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: HostsCommand,
}

/// What `larder hosts` can do.
#[derive(Debug, clap::Subcommand)]
pub enum HostsCommand {
    /// Put larder before the hosts in each hosts.toml. What was there is kept beside it.
    Apply,
    /// Put every file back as it was. A running agent writes its entries again: stop it first.
    Restore,
    /// Say what stands there.
    Show {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command and writes its result to standard output. `ca_pem` is the node's CA, for `apply` with `tls` on.
/// Blocking: `apply` may wait for containerd's answer, for 5 s at most.
///
/// # Errors
/// When anything could not be done; what could be is done, and was written out.
pub fn run(args: &HostsArgs, config: &Config, ca_pem: Option<String>) -> anyhow::Result<()> {
    run_to(&mut io::stdout().lock(), args, config, ca_pem)
}

fn run_to(out: &mut impl Write, args: &HostsArgs, config: &Config, ca_pem: Option<String>) -> anyhow::Result<()> {
    let dir = args.hosts_dir.as_deref().unwrap_or(&config.containerd.hosts_dir);
    match args.command {
        HostsCommand::Apply => apply(out, dir, config, ca_pem, reader(config)?),
        HostsCommand::Restore => restore(out, dir),
        HostsCommand::Show { json } => show(out, dir, config, json),
    }
}

/// The containerd that will read what is applied.
enum Reader {
    /// Any can.
    Any,
    /// This one.
    Known(Version),
    /// Nobody knows; why.
    Unknown(String),
}

/// Asks containerd for its version, where it matters.
fn reader(config: &Config) -> anyhow::Result<Reader> {
    if !Entry::depends_on_reader(config.mirror.listen) {
        return Ok(Reader::Any);
    }
    let asked = super::block_on(async { Client::new(&config.containerd)?.version().await })?;
    Ok(match asked.map(|release| release.version.ok_or(release.text)) {
        Ok(Ok(version)) => Reader::Known(version),
        Ok(Err(text)) => Reader::Unknown(format!("{text:?} is no version that is known")),
        Err(error) => Reader::Unknown(error.to_string()),
    })
}

fn apply(
    out: &mut impl Write,
    dir: &Path,
    config: &Config,
    ca_pem: Option<String>,
    reader: Reader,
) -> anyhow::Result<()> {
    if config.mirror.tls && ca_pem.is_none() {
        bail!("the node has no CA yet; start larder run once, or set tls = false in [mirror]");
    }
    let targets = config.containerd.registries.clone();
    let hosts = HostsDir::new(dir.to_owned(), targets, config.containerd.templates.as_deref())?;
    let (reader, doubt) = match reader {
        Reader::Any => (None, None),
        Reader::Known(version) => (Some(version), None),
        Reader::Unknown(why) => (None, Some(why)),
    };
    let entry = Entry { listen: config.mirror.listen, ca_pem: ca_pem.filter(|_| config.mirror.tls), reader };
    let applied = hosts.apply(&entry).with_context(|| format!("nothing was written in {}", dir.display()))?;
    let mut rows = Vec::new();
    for folder in &applied.folders {
        let result = match &folder.outcome {
            Ok(Outcome::Written) => "written".to_owned(),
            Ok(Outcome::Unchanged) => "unchanged".to_owned(),
            Ok(Outcome::Restored) => "restored: it is none of the configured registries".to_owned(),
            Err(e) => failure(e),
        };
        rows.push([folder.name.clone(), result]);
        rows.extend(folder.warnings.iter().map(|warning| [String::new(), format!("warning: {warning}")]));
    }
    table(out, ["FOLDER", "RESULT"], &rows)?;
    if let Some(why) = doubt {
        writeln!(
            out,
            "warning: containerd before 2.0 can't read an address of IPv6, and which one it is isn't known: {why}"
        )?;
    }
    match applied.failures().count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} folders could not be done", applied.folders.len()),
    }
}

/// Takes back every entry in `dir`, and says what became of each.
///
/// # Errors
/// When anything could not be put back; what could be is.
pub(super) fn restore(out: &mut impl Write, dir: &Path) -> anyhow::Result<()> {
    let restored = HostsDir::restore(dir).with_context(|| format!("nothing was restored in {}", dir.display()))?;
    let rows: Vec<_> = restored
        .folders
        .iter()
        .map(|folder| {
            let result = match &folder.outcome {
                Ok(Undone::Original) => "the original is back".to_owned(),
                Ok(Undone::NoFile) => "removed: there was no file before".to_owned(),
                Ok(Undone::NoFolder) => "removed: there was no folder before".to_owned(),
                Ok(Undone::Theirs) => "left: somebody has put another file there".to_owned(),
                Err(e) => failure(e),
            };
            [folder.name.clone(), result]
        })
        .collect();
    if rows.is_empty() {
        writeln!(out, "nothing of larder's is in {}", dir.display())?;
    } else {
        table(out, ["FOLDER", "RESULT"], &rows)?;
    }
    if restored.removed_dir {
        writeln!(out, "{} is removed too: larder had made it", dir.display())?;
    }
    match restored.folders.iter().filter(|folder| folder.outcome.is_err()).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} folders could not be restored", restored.folders.len()),
    }
}

/// A folder, and which of its hosts are upstreams of ours too.
#[derive(serde::Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    shown: &'a Shown,
    adopted: Option<&'a Adopted>,
}

fn show(out: &mut impl Write, dir: &Path, config: &Config, json: bool) -> anyhow::Result<()> {
    let shown = HostsDir::show(dir)?;
    let adopted = adopted(dir, config)?;
    if json {
        let row =
            |shown| Row { shown, adopted: adopted.iter().find(|one| one.file.starts_with(dir.join(&shown.folder))) };
        serde_json::to_writer_pretty(&mut *out, &shown.iter().map(row).collect::<Vec<_>>())?;
        writeln!(out)?;
        return Ok(());
    }
    if shown.is_empty() {
        writeln!(out, "no registry has a folder in {}", dir.display())?;
        return Ok(());
    }
    let mut rows = Vec::new();
    for one in &shown {
        rows.push([one.folder.clone(), state(one.state).to_owned(), original(one.original).to_owned(), hosts(one)]);
        rows.extend(
            one.problem
                .iter()
                .map(|problem| [String::new(), String::new(), String::new(), format!("problem: {problem}")]),
        );
    }
    table(out, ["FOLDER", "FILE", "ORIGINAL", "ASKED IN THIS ORDER"], &rows)?;
    if !adopted.is_empty() {
        writeln!(out, "\nasked by larder too, in the place of containerd:")?;
    }
    adopted.iter().try_for_each(|one| writeln!(out, "{one}"))?;
    Ok(())
}

/// What the agent takes over from the user's files in `dir`; nothing where it is told not to.
pub(super) fn adopted(dir: &Path, config: &Config) -> Result<Vec<Adopted>, HostsError> {
    if !config.containerd.adopts() {
        return Ok(vec![]);
    }
    Ok(view::adopted(&HostsDir::adopted(dir, config.mirror.listen)?, config))
}

const fn state(state: State) -> &'static str {
    match state {
        State::Ours => "larder's",
        State::Edited => "larder's, edited",
        State::NotOurs => "not larder's",
        State::Missing => "none",
        State::Unreadable => "unreadable",
    }
}

const fn original(original: Original) -> &'static str {
    match original {
        Original::Kept => "kept",
        Original::None => "none",
        Original::Lost => "lost",
        Original::InPlace => "in place",
    }
}

fn hosts(shown: &Shown) -> String {
    let names = shown.hosts.iter().map(|host| host.as_deref().unwrap_or("(the registry itself)"));
    names.collect::<Vec<_>>().join(", ")
}

fn failure(error: &HostsError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("failed: {error}: {source}"),
        None => format!("failed: {error}"),
    }
}

/// Columns as wide as their widest cell; the last one as it comes.
fn table<const N: usize>(out: &mut impl Write, head: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let head = head.map(str::to_owned);
    let all = || std::iter::once(&head).chain(rows);
    let widths: [usize; N] = std::array::from_fn(|at| all().map(|row| row[at].chars().count()).max().unwrap_or(0));
    for row in all() {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: HostsArgs,
    }

    fn run(dir: &Path, words: &[&str], tls: bool) -> (String, anyhow::Result<()>) {
        let mut config = Config::default();
        config.containerd.hosts_dir = dir.to_owned();
        config.mirror.tls = tls;
        let args = Command::parse_from(["hosts"].iter().chain(words)).args;
        let mut out = Vec::new();
        let result = run_to(&mut out, &args, &config, None);
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn apply_show_and_restore() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("certs.d");
        std::fs::create_dir_all(dir.join("docker.io")).unwrap();
        std::fs::write(dir.join("docker.io/hosts.toml"), "server = 'https://s'\n[host]\na = {}\n").unwrap();

        let (text, result) = run(&dir, &["apply"], false);
        result.unwrap();
        assert!(text.contains("docker.io  written\n") && text.contains("warning: inline tables"), "{text}");
        let (text, result) = run(&dir, &["show"], false);
        result.unwrap();
        assert!(text.contains("docker.io  larder's  kept      http://127.0.0.1:7439, a, https://s\n"), "{text}");
        assert!(
            text.contains("_default   larder's  none      http://127.0.0.1:7439, (the registry itself)\n"),
            "{text}"
        );
        let line = format!("\ndocker.io: https://a, https://s, from {}", dir.join("docker.io").display());
        assert!(text.contains(&line), "{text}");
        let (text, _) = run(&dir, &["show", "--json"], false);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json[1]["hosts"][1], "a");
        assert_eq!(json[1]["adopted"]["upstreams"], serde_json::json!(["https://a", "https://s"]));
        assert!(json[0]["adopted"].is_null());
        assert_eq!(json[0]["state"], "ours");

        let (text, result) = run(&dir, &["restore"], false);
        result.unwrap();
        assert!(text.contains("docker.io  the original is back\n"), "{text}");
        assert!(text.contains("_default   removed: there was no folder before\n"), "{text}");
        let (text, result) = run(Path::new("/nowhere"), &["--hosts-dir", dir.to_str().unwrap(), "restore"], false);
        result.unwrap();
        assert_eq!(text, format!("nothing of larder's is in {}\n", dir.display()));
    }

    #[test]
    fn what_is_taken_over_is_shown_with_what_is_not() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("docker.io")).unwrap();
        std::fs::write(folder.path().join("docker.io/hosts.toml"), "[host.a]\n[host.'u:p@b']\nca = 'gone'\n").unwrap();
        let mut config: Config =
            toml::from_str("[[registry]]\nname = 'docker.io'\n[[registry.upstream]]\nurl = 'https://c'\n").unwrap();
        let said = |config: &Config| {
            let adopted = adopted(folder.path(), config).unwrap();
            adopted.iter().map(ToString::to_string).collect::<Vec<_>>().concat()
        };
        let text = said(&config);
        assert!(text.contains("hosts.toml; not asked: the configuration lists upstreams for it\n  not b: "), "{text}");
        config.registries.clear();
        assert!(!said(&config).contains("not asked"));
        config.containerd.adopt_mirrors = false;
        assert_eq!(said(&config), "");
    }

    #[test]
    fn an_address_of_ipv6_is_written_where_containerd_may_be_able_to_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("certs.d");
        let mut config = Config::default();
        config.mirror.listen = "[::1]:7439".parse().unwrap();
        config.mirror.tls = false;
        config.containerd.hosts_dir = dir.clone();
        config.containerd.socket = folder.path().join("containerd.sock");
        let mut out = Vec::new();
        let refused = apply(&mut out, &dir, &config, None, Reader::Known(Version::new(1, 7, 34))).unwrap_err();
        assert!(
            format!("{refused:#}").contains("can't read a hosts.toml that names an address of IPv6"),
            "{refused:#}"
        );
        assert!(out.is_empty() && !dir.exists());
        apply(&mut out, &dir, &config, None, Reader::Known(Version::new(2, 0, 0))).unwrap();
        assert!(!String::from_utf8(out).unwrap().contains("warning"));

        // Nobody is there to be asked.
        HostsDir::restore(&dir).unwrap();
        let args = Command::parse_from(["hosts", "apply"]).args;
        let mut out = Vec::new();
        run_to(&mut out, &args, &config, None).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("_default  written\n") && text.contains("warning: "), "{text}");
        assert!(text.contains("containerd.sock"), "{text}");
        assert!(
            std::fs::read_to_string(dir.join("_default/hosts.toml")).unwrap().contains("[host.\"http://[::1]:7439\"]")
        );
        config.mirror.listen = "127.0.0.1:7439".parse().unwrap();
        let mut out = Vec::new();
        run_to(&mut out, &args, &config, None).unwrap();
        assert!(!String::from_utf8(out).unwrap().contains("warning"));
    }

    #[test]
    fn tls_without_a_ca_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (_, result) = run(&folder.path().join("certs.d"), &["apply"], true);
        assert!(result.unwrap_err().to_string().contains("larder run"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_failed_is_told_and_the_rest_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("certs.d");
        std::fs::create_dir_all(dir.join("a.io/hosts.toml")).unwrap();
        let (text, result) = run(&dir, &["apply"], false);
        assert!(result.unwrap_err().to_string().contains("1 of 2"));
        assert!(text.contains("a.io      failed: ") && text.contains("_default  written"), "{text}");
    }
}
