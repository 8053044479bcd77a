use std::path::Path;

use serde::Serialize;

use super::disk;
use super::error::HostsError;
use super::folder::{self, Current, Folder};
use super::reading::Reading;
use super::root;

/// One folder, as containerd sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The folder's name.
    pub folder: String,
    /// Whose file it is.
    pub state: State,
    /// What there was before.
    pub original: Original,
    /// The hosts in the order in which they are asked, the upstream last. `None` for containerd's default one.
    pub hosts: Vec<Option<String>>,
    /// What is wrong, and what to do.
    pub problem: Option<String>,
}

/// Whose `hosts.toml` a folder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ours, as we wrote it.
    Ours,
    /// Ours, with somebody's changes.
    Edited,
    /// Not ours.
    NotOurs,
    /// None.
    Missing,
    /// It can't be read.
    Unreadable,
}

/// What restoring would put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Original {
    /// The file that lies beside ours.
    Kept,
    /// There was none.
    None,
    /// There was one, and it is gone; restoring takes its hosts from our file.
    Lost,
    /// The file is not ours: it is the original.
    InPlace,
}

pub(super) fn show(dir: &Path) -> Result<Vec<Shown>, HostsError> {
    if !dir.exists() {
        return Ok(vec![]);
    }
    Ok(root::names(dir)?.into_iter().map(|name| one(&dir.join(&name), name)).collect())
}

fn one(path: &Path, name: String) -> Shown {
    let unreadable = |why: String| Shown {
        folder: name.clone(),
        state: State::Unreadable,
        original: Original::InPlace,
        hosts: vec![],
        problem: Some(why),
    };
    if !path.is_dir() {
        return unreadable(HostsError::DanglingFolder { path: path.to_owned() }.to_string());
    }
    let contents = match Folder::new(path.to_owned()).contents() {
        Ok(contents) => contents,
        Err(e) => return unreadable(e.with_source()),
    };
    let (state, text) = match &contents.file {
        Current::Ours(written) if written.intact => (State::Ours, Some(written.text.as_bytes())),
        Current::Ours(written) => (State::Edited, Some(written.text.as_bytes())),
        Current::Theirs(bytes) => (State::NotOurs, bytes.as_deref()),
        Current::Missing => (State::Missing, None),
    };
    let original = match &contents.file {
        Current::Theirs(_) => Original::InPlace,
        _ if contents.has_kept => Original::Kept,
        Current::Ours(written) if written.facts.kept => Original::Lost,
        _ => Original::None,
    };
    let read = str::from_utf8(text.unwrap_or_default()).map_err(|e| e.to_string()).and_then(Reading::of);
    let mut problem = None;
    let hosts = match read {
        Ok(reading) => {
            problem = missing_ca(path, &reading);
            let server = reading.server().map(str::to_owned);
            reading.hosts.into_iter().map(|host| Some(host.url)).chain([server]).collect()
        }
        Err(why) => {
            problem.get_or_insert(format!("containerd can't read hosts.toml and asks its default upstream: {why}"));
            vec![None]
        }
    };
    Shown { folder: name, state, original, hosts, problem }
}

/// A `ca` that isn't there makes every pull fail.
fn missing_ca(path: &Path, reading: &Reading) -> Option<String> {
    let tables = reading.hosts.iter().filter_map(|host| host.fields.as_table()).chain([&reading.root]);
    let mut files = tables.filter_map(|table| table.get("ca")).flat_map(|ca| match ca {
        toml::Value::Array(files) => files.iter().filter_map(toml::Value::as_str).collect(),
        file => file.as_str().into_iter().collect::<Vec<_>>(),
    });
    let missing = files.find(|file| !matches!(disk::read(&path.join(file)), Ok(Some(_))))?;
    let remedy =
        if missing == folder::CA { "run larder hosts apply" } else { "put it back, or take it out of the file" };
    Some(format!("the CA {missing} is missing, and every pull fails for it; {remedy}"))
}
