use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::edit;
use crate::cli::doctor::facts::{Facts, Root, same_path};
use crate::cli::doctor::mend;
use crate::cli::doctor::platform::Platform;
use crate::containerd::setup::{Disk, Fault, Files, Setup};

/// What is written.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) file: PathBuf,
    /// `None`: there is no such file yet.
    pub(super) before: Option<String>,
    pub(super) after: String,
    /// What `config_path` becomes.
    pub(super) folder: PathBuf,
}

/// Why the file is left alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

/// What would mend `config_path`; `None` where nothing is wrong with it.
pub(super) fn plan(facts: &Facts) -> Result<Option<Plan>, Refusal> {
    let before = match Disk.read(&facts.setup_file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return refuse(format!("it can't be read: {error}")),
    };
    if before.is_some() && facts.setup_file.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
        return refuse("it is a symbolic link: what made that will make it again");
    }
    plan_of(facts, before, &Disk)
}

/// The same for a text, among files that may be a test's.
pub(super) fn plan_of(facts: &Facts, before: Option<String>, files: &impl Files) -> Result<Option<Plan>, Refusal> {
    let folder = &facts.config.containerd.hosts_dir;
    if is_right(&facts.setup, folder) {
        return Ok(None);
    }
    is_ours_to_write(facts)?;
    is_plain(facts, folder)?;
    // A file that isn't there yet begins with its format.
    let base = before.clone().unwrap_or_else(|| format!("version = {}\n", mend::new_format(facts)));
    let after = edit::set_config_path(&base, mend::plugin(facts), folder).map_err(Refusal)?;
    let plan = Plan { file: facts.setup_file.clone(), before, after, folder: folder.clone() };
    changes_nothing_else(facts, &base, &plan)?;
    takes_effect(facts, &plan, files)?;
    Ok(Some(plan))
}

impl Plan {
    /// The lines that are new, with those that they replace before them.
    pub(super) fn difference(&self) -> Vec<String> {
        let before: Vec<&str> = self.before.as_deref().unwrap_or_default().lines().collect();
        let after: Vec<&str> = self.after.lines().collect();
        let first = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
        let rest = before.len().min(after.len()) - first;
        let last = before.iter().rev().zip(after.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
        let old = before[first..before.len() - last].iter().map(|line| format!("- {line}"));
        let new = after[first..after.len() - last].iter().map(|line| format!("+ {line}"));
        old.chain(new).collect()
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(why.into()))
}

/// One folder, ours; or a list that is understood and has it.
fn is_right(setup: &Setup, folder: &Path) -> bool {
    let names_it = setup.config_path.as_ref().is_some_and(|path| path.folders().any(|one| same_path(one, folder)));
    names_it && !setup.is_ignored_list()
}

/// The file that containerd reads at its next start, on the machine that it runs on.
fn is_ours_to_write(facts: &Facts) -> Result<(), Refusal> {
    if facts.surroundings.is_pod {
        return refuse("this is a Pod, and containerd's file is the node's; run it there, or write the lines above");
    }
    match facts.platform {
        Platform::Plain | Platform::Minikube => {}
        other => {
            let name = other.name().unwrap_or_default();
            return refuse(format!("{name} makes it anew by itself; the lines above say where to write on {name}"));
        }
    }
    if facts.runtime.release.is_err() {
        return refuse("containerd doesn't answer, and what is right depends on its version");
    }
    if facts.version().is_none() {
        return refuse("containerd's version isn't known, on which it depends what is right");
    }
    match &facts.runtime.config_argument {
        Some(file) if *file != facts.setup_file => refuse(format!("containerd was started with {}", file.display())),
        _ => Ok(()),
    }
}

/// Nothing is wrong with the file but that `config_path` is missing, or is the list that no hosts.toml is found by.
fn is_plain(facts: &Facts, folder: &Path) -> Result<(), Refusal> {
    let setup = &facts.setup;
    if let Some(fault) = setup.faults.iter().find(|fault| !matches!(fault, Fault::NoRootFile(_))) {
        return refuse(format!("it has to be mended first: {fault}"));
    }
    if let Some(place) = &setup.cri_disabled {
        return refuse(format!("disabled_plugins switches off what serves kubelet ({place}); mend that first"));
    }
    if let Some(legacy) = setup.legacy.first() {
        return refuse(format!("{} at {} has to go first: containerd refuses both together", legacy.key, legacy.place));
    }
    if let Some((later, _)) = &setup.replaced {
        return refuse(format!("an imported file replaces its section ({later}); set config_path there"));
    }
    let Some(path) = &setup.config_path else { return Ok(()) };
    if !setup.is_ignored_list() {
        let own = "let larder.toml name that folder as hosts_dir instead";
        return refuse(format!("config_path is set to {:?} by somebody; {own}", path.value));
    }
    let is_used =
        |root: &&Root| !same_path(&root.path, folder) && root.folders.as_ref().is_ok_and(|folders| !folders.is_empty());
    if let Some(root) = facts.roots.iter().find(is_used) {
        return refuse(format!(
            "config_path is a list, and {} has entries of its own; move them first",
            root.path.display()
        ));
    }
    Ok(())
}

/// Read by another reader of TOML than the one that made it, it says what `base` said, and `config_path`.
fn changes_nothing_else(facts: &Facts, base: &str, plan: &Plan) -> Result<(), Refusal> {
    let read = |text: &str| text.parse::<Table>().map_err(|e| Refusal(format!("it is no TOML: {}", e.message())));
    let mut expected = read(base)?;
    let mut table = &mut expected;
    for key in ["plugins", mend::plugin(facts), "registry"] {
        let entry = table.entry(key).or_insert_with(|| Value::Table(Table::new()));
        let Some(below) = entry.as_table_mut() else { return refuse(format!("{key} is no table")) };
        table = below;
    }
    table.insert("config_path".to_owned(), Value::String(plan.folder.display().to_string()));
    if read(&plan.after)? != expected {
        return refuse("it can't be changed without changing something else; write the lines above by hand");
    }
    Ok(())
}

/// Read as containerd reads it, with all that it imports, it comes to the folder, and to nothing worse than before.
fn takes_effect(facts: &Facts, plan: &Plan, files: &impl Files) -> Result<(), Refusal> {
    let changed = Changed { files, file: &plan.file, text: &plan.after };
    let setup = Setup::read(&changed, &plan.file, facts.version());
    if let Some(fault) = setup.faults.first() {
        return refuse(format!("it would be wrong then: {fault}"));
    }
    if setup.conflict().is_some() || !is_right(&setup, &plan.folder) {
        return refuse("config_path wouldn't take effect there: an imported file says otherwise");
    }
    if std::mem::discriminant(&setup.pull_mode) != std::mem::discriminant(&facts.setup.pull_mode) {
        return refuse("containerd would pull by another of its ways then");
    }
    Ok(())
}

/// Files of which one is as it will be.
struct Changed<'a, F> {
    files: &'a F,
    file: &'a Path,
    text: &'a str,
}

impl<F: Files> Files for Changed<'_, F> {
    fn read(&self, path: &Path) -> io::Result<String> {
        if path == self.file { Ok(self.text.to_owned()) } else { self.files.read(path) }
    }

    fn names(&self, folder: &Path) -> Vec<String> {
        self.files.names(folder)
    }

    fn exists(&self, path: &Path) -> bool {
        path == self.file || self.files.exists(path)
    }
}
