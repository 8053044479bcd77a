//! `larder certs`

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::{fs, io};

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args};
use time::OffsetDateTime;

use crate::wire::ClusterCa;

const CERTIFICATES: &str = "ca.pem";
const KEYS: &str = "ca.key";

/// `larder certs`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("where").required(true).multiple(true).args(["dir", "kubernetes"])))]
pub struct Arguments {
    /// Write ca.pem and ca.key into this folder; what is there is never overwritten
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Put a new authority before the one in --dir: both are trusted, and nodes turn to the new one an hour later
    #[arg(long, requires = "dir", conflicts_with = "retire")]
    rotate: bool,
    /// Leave only the newest authority in --dir, some hours after --rotate
    #[arg(long, requires = "dir")]
    retire: bool,
    /// Print a Secret for kubectl apply: of what is in --dir, else of a new authority that is kept nowhere else
    #[arg(long)]
    kubernetes: bool,
    /// The Secret's namespace
    #[arg(long, value_name = "NAME", default_value = "larder", requires = "kubernetes")]
    namespace: Label,
    /// The Secret's name
    #[arg(long, value_name = "NAME", default_value = "larder-peers-ca", requires = "kubernetes")]
    name: Label,
}

/// A name as Kubernetes takes it.
#[derive(Debug, Clone)]
struct Label(String);

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_label = (1..=63).contains(&text.len())
            && text.bytes().all(is_inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if is_label { Ok(Self(text.to_owned())) } else { Err("lower-case letters, digits and - only".to_owned()) }
    }
}

/// Makes, rotates or prints the cluster's authority. Reads no configuration and asks no agent.
///
/// # Errors
/// When a file is there already, or can't be read or written, or it is too early to retire.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let Some(dir) = &arguments.dir else {
        write!(out, "{}", manifest(&ClusterCa::make()?, arguments))?;
        eprintln!("{}", after_secret(arguments));
        return Ok(ExitCode::SUCCESS);
    };
    let (ca, done) = if arguments.rotate {
        let ca = read(dir)?.rotated()?;
        replace(dir, &ca)?;
        (ca, after_rotation(dir))
    } else if arguments.retire {
        let ca = read(dir)?.retired(OffsetDateTime::now_utc()).with_context(|| dir.display().to_string())?;
        replace(dir, &ca)?;
        (ca, format!("{} has the newest authority alone now. Give both files to every node.", dir.display()))
    } else if arguments.kubernetes && dir.join(KEYS).exists() {
        (read(dir)?, String::new())
    } else {
        let ca = ClusterCa::make()?;
        create(dir, &ca)?;
        (ca, after_creation(dir))
    };
    if arguments.kubernetes {
        write!(out, "{}", manifest(&ca, arguments))?;
        eprintln!("{}", after_secret(arguments));
    } else {
        writeln!(out, "{done}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(dir: &Path) -> anyhow::Result<ClusterCa> {
    let text = |name| {
        let path = dir.join(name);
        fs::read_to_string(&path)
            .with_context(|| format!("{} can't be read; larder certs --dir {} makes it", path.display(), dir.display()))
    };
    ClusterCa::from_pem(text(CERTIFICATES)?, text(KEYS)?)
        .with_context(|| format!("{CERTIFICATES} and {KEYS} in {} are no authority and its key", dir.display()))
}

/// Makes both files, or none of them.
fn create(dir: &Path, ca: &ClusterCa) -> anyhow::Result<()> {
    for name in [CERTIFICATES, KEYS] {
        let path = dir.join(name);
        // Also a link that leads nowhere.
        if path.symlink_metadata().is_ok() {
            bail!(
                "{} is there already, and nodes may depend on it; --rotate makes a successor beside it, and another \
                 --dir makes an authority for another cluster",
                path.display()
            );
        }
    }
    fs::create_dir_all(dir).with_context(|| format!("the folder {} can't be made", dir.display()))?;
    new_file(&dir.join(KEYS), ca.keys(), 0o600)?;
    new_file(&dir.join(CERTIFICATES), ca.certificates(), 0o644)
}

/// Puts both files in the place of those that are there.
fn replace(dir: &Path, ca: &ClusterCa) -> anyhow::Result<()> {
    let (certificates, keys) = (dir.join("ca.pem.new"), dir.join("ca.key.new"));
    for path in [&certificates, &keys] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("{} is in the way", path.display()));
            }
            _ => {}
        }
    }
    new_file(&keys, ca.keys(), 0o600)?;
    new_file(&certificates, ca.certificates(), 0o644)?;
    let renamed = |from: &Path, name| {
        let to = dir.join(name);
        fs::rename(from, &to).with_context(|| format!("{} can't be replaced", to.display()))
    };
    renamed(&certificates, CERTIFICATES)?;
    renamed(&keys, KEYS)
}

fn new_file(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("{} can't be written", path.display()))
}

fn manifest(ca: &ClusterCa, arguments: &Arguments) -> String {
    let (name, namespace) = (&arguments.name.0, &arguments.namespace.0);
    let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\n  namespace: {namespace}\ntype: Opaque\nstringData:\n  \
         {CERTIFICATES}: |\n{}  {KEYS}: |\n{}",
        indented(ca.certificates()),
        indented(ca.keys())
    )
}

fn after_creation(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "{dir}/{CERTIFICATES} and {dir}/{KEYS} are the cluster's authority, for ten years.\n\n\
         Whoever has {KEYS} can pose as any node: keep it for root's eyes. Copy both files to every node, and put into \
         its /etc/larder/larder.toml:\n\n\
         [peers]\nca = \"/etc/larder/peers/{CERTIFICATES}\"\nkey = \"/etc/larder/peers/{KEYS}\"\n\
         seeds = [\"ADDRESS-OF-ANY-NODE:7441\"]"
    )
}

fn after_rotation(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "{dir} has a new authority before the old one.\n\n\
         1. Within an hour, give both files to every node. Agents read them again by themselves, and nothing is \
         interrupted: all trust both, and the old one goes on signing until the new one is an hour old.\n\
         2. Two hours from now or later, larder certs --dir {dir} --retire takes the old one out; give both files to \
         every node again."
    )
}

fn after_secret(arguments: &Arguments) -> String {
    format!(
        "# Pipe it into kubectl apply --server-side -f - and mount the Secret {} where ca and key in [peers] point.",
        arguments.name.0
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parsed(line: &[&str]) -> Result<Arguments, String> {
        let line = std::iter::once("certs").chain(line.iter().copied());
        Line::try_parse_from(line).map(|line| line.arguments).map_err(|e| e.to_string())
    }

    fn certs(line: &[&str]) -> anyhow::Result<ExitCode> {
        run(&parsed(line).unwrap())
    }

    #[test]
    fn made_once_and_rotated_beside() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("peers");
        let at = dir.to_str().unwrap();
        assert!(certs(&["--dir", at, "--rotate"]).unwrap_err().to_string().contains("makes it"));
        certs(&["--dir", at]).unwrap();
        let mode = |name| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(KEYS), mode(CERTIFICATES)), (0o600, 0o644));
        let text = |name| fs::read_to_string(dir.join(name)).unwrap();
        let (certificate, key) = (text(CERTIFICATES), text(KEYS));

        let error = certs(&["--dir", at]).unwrap_err().to_string();
        assert!(error.contains("--rotate"), "{error}");
        assert_eq!((text(CERTIFICATES), text(KEYS)), (certificate.clone(), key.clone()), "nothing was overwritten");

        certs(&["--dir", at, "--rotate"]).unwrap();
        assert!(text(CERTIFICATES).ends_with(&certificate) && text(KEYS).ends_with(&key));
        assert!(text(KEYS).len() > key.len());
        assert_eq!(mode(KEYS), 0o600);
        let error = format!("{:#}", certs(&["--dir", at, "--retire"]).unwrap_err());
        assert!(error.contains("leave the others"), "{error}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "nothing is left lying about");
    }

    #[test]
    fn half_of_a_pair_is_not_overwritten_either() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(KEYS), "precious").unwrap();
        assert!(certs(&["--dir", dir.path().to_str().unwrap()]).is_err());
        assert_eq!(fs::read_to_string(dir.path().join(KEYS)).unwrap(), "precious");
        assert!(!dir.path().join(CERTIFICATES).exists());
    }

    #[test]
    fn a_secret_for_kubectl() {
        let arguments = parsed(&["--kubernetes", "--namespace", "ns", "--name", "a-b"]).unwrap();
        let ca = ClusterCa::make().unwrap().rotated().unwrap();
        let secret: yaml_serde::Value = yaml_serde::from_str(&manifest(&ca, &arguments)).unwrap();
        assert_eq!(secret["kind"], "Secret");
        assert_eq!((&secret["metadata"]["namespace"], &secret["metadata"]["name"]), (&"ns".into(), &"a-b".into()));
        assert_eq!(secret["stringData"][CERTIFICATES], ca.certificates());
        assert_eq!(secret["stringData"][KEYS], ca.keys());
    }

    #[test]
    fn what_can_be_asked_for() {
        assert!(parsed(&[]).unwrap_err().contains("--dir"));
        assert!(parsed(&["--rotate", "--kubernetes"]).unwrap_err().contains("--dir"));
        assert!(parsed(&["--dir", "a", "--rotate", "--retire"]).is_err());
        for wrong in ["", "A", "a b", "-a", "a:\nb"] {
            assert!(parsed(&["--kubernetes", "--name", wrong]).is_err(), "{wrong}");
        }
    }
}
