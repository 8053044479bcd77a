use std::path::Path;

use crate::cli::doctor::facts::{Facts, same_path};
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::cli::doctor::mend;
use crate::containerd::setup::{Fault, PullMode};

const CHECK: &str = "config";

/// Whether containerd is configured to read hosts.toml files, and the ones that we write.
pub(super) fn config(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.setup.faults.iter().map(fault).collect();
    findings.extend(other_file(facts));
    findings.extend(switched_off(facts));
    let unreadable = facts.setup.faults.iter().any(|fault| matches!(fault, Fault::Unreadable { .. }));
    // What couldn't be read may say anything; then only containerd itself can tell.
    let verdict = if unreadable { told_by_containerd(facts) } else { Some(config_path(facts)) };
    findings.extend(verdict);
    if !unreadable {
        findings.extend(not_restarted(facts));
    }
    findings.extend(replaced(facts));
    findings.extend(discarded(facts));
    findings
}

fn fault(fault: &Fault) -> Finding {
    match fault {
        Fault::NoRootFile(_) => Finding::new(CHECK, Severity::Note, fault.to_string()),
        Fault::Unreadable { .. } => Finding::new(CHECK, Severity::Unknown, fault.to_string())
            .mended_by([Mend::new("run as root", ["sudo larder doctor"])]),
        Fault::TooManyFiles => Finding::new(CHECK, Severity::Unknown, fault.to_string()),
        Fault::ImportMissing { .. }
        | Fault::Malformed { .. }
        | Fault::ImportTooNew { .. }
        | Fault::FormatTooNew { .. }
        | Fault::ShortName { .. } => Finding::new(CHECK, Severity::Problem, fault.to_string())
            .mended_by([Mend::new("mend the file, until this says no more of it", ["containerd config dump"])]),
    }
}

fn other_file(facts: &Facts) -> Option<Finding> {
    let configured = &facts.config.containerd.config;
    (*configured != facts.setup_file).then(|| {
        let name = facts.platform.name().unwrap_or("containerd");
        let (own, other) = (configured.display(), facts.setup_file.display());
        let what = match &facts.runtime.config_argument {
            Some(file) if *file == facts.setup_file => format!("containerd was started with {other}, not with {own}"),
            _ => format!("there is no {own}; {name} has it at {other}"),
        };
        Finding::new(CHECK, Severity::Note, what).mended_by([mend::larder_toml("config", &facts.setup_file)])
    })
}

fn switched_off(facts: &Facts) -> Option<Finding> {
    let place = facts.setup.cri_disabled.as_ref()?;
    Some(
        Finding::new(CHECK, Severity::Problem, "disabled_plugins switches off what serves kubelet")
            .at(&place)
            .because("Docker's package of containerd comes so; neither kubelet nor the canary can pull")
            .mended_by([
                Mend::new("take the entry out of the list", ["disabled_plugins = []"]).then(facts.platform.restart())
            ]),
    )
}

/// The one finding on `config_path`: the first fault, or that it is right.
fn config_path(facts: &Facts) -> Finding {
    let setup = &facts.setup;
    let hosts_dir = &facts.config.containerd.hosts_dir;
    if let Some((path, legacy)) = setup.conflict() {
        return Finding::new(
            CHECK,
            Severity::Problem,
            format!("{} stands beside config_path = {:?}", legacy.key, path.value),
        )
        .at(&legacy.place)
        .because("containerd's plugin for kubelet refuses to load with both: nothing can be pulled")
        .mended_by([Mend::new(
            "delete that section, and name its mirrors in larder.toml instead, such as",
            [
                "[[registry]]",
                "name = \"docker.io\"",
                "[[registry.upstream]]",
                "url = \"https://mirror.example\"",
                "[[registry.upstream]]",
                "url = \"https://registry-1.docker.io\"",
            ],
        )]);
    }
    let Some(path) = &setup.config_path else {
        let why = match setup.legacy.first() {
            Some(legacy) => format!(
                "containerd reads no hosts.toml without it; before it is set, {} at {} has to go",
                legacy.key, legacy.place
            ),
            None => "containerd reads no hosts.toml without it, and never comes to the mirror".to_owned(),
        };
        return Finding::new(CHECK, Severity::Problem, "config_path isn't set")
            .at(&facts.setup_file.display())
            .because(why)
            .mended_by(mend::set_config_path(facts, hosts_dir));
    };
    let place = path.place.as_ref().map_or_else(|| "containerd's own default".to_owned(), ToString::to_string);
    if setup.is_ignored_list() {
        return Finding::new(CHECK, Severity::Problem, format!("config_path is a list: {:?}", path.value))
            .at(&place)
            .because("the transfer service, by which this containerd pulls, takes it for one folder, and finds none")
            .mended_by(mend::set_config_path(facts, hosts_dir).into_iter().chain(mend::pull_locally(facts)));
    }
    if !path.folders().any(|folder| same_path(folder, hosts_dir)) {
        let first = path.folders().next().unwrap_or(Path::new("/etc/containerd/certs.d"));
        let what = format!("config_path is {:?}, and Larder writes to {}", path.value, hosts_dir.display());
        return Finding::new(CHECK, Severity::Problem, what)
            .at(&place)
            .because("containerd looks elsewhere than where our entry is")
            .mended_by(
                std::iter::once(mend::larder_toml("hosts_dir", first)).chain(mend::set_config_path(facts, hosts_dir)),
            );
    }
    Finding::new(CHECK, Severity::Ok, format!("config_path is {:?}", path.value)).at(&place)
}

/// Up to 1.7 containerd tells its `config_path` by itself.
fn told_by_containerd(facts: &Facts) -> Option<Finding> {
    let told = facts.runtime.status.as_ref()?.config_path()?;
    let hosts_dir = &facts.config.containerd.hosts_dir;
    let finding = |severity, what: String| Some(Finding::new(CHECK, severity, what));
    if told.split(':').any(|folder| same_path(Path::new(folder), hosts_dir)) {
        return finding(Severity::Ok, format!("config_path is {told:?}, says containerd"));
    }
    let what = if told.is_empty() { "config_path isn't set".to_owned() } else { format!("config_path is {told:?}") };
    Some(
        finding(Severity::Problem, format!("{what}, says containerd"))?
            .because(format!("our entry is in {}", hosts_dir.display()))
            .mended_by(mend::set_config_path(facts, hosts_dir)),
    )
}

fn not_restarted(facts: &Facts) -> Option<Finding> {
    let told = facts.runtime.status.as_ref()?.config_path()?;
    let written = facts.setup.config_path.as_ref().map_or("", |path| path.value.as_str());
    (told != written).then(|| {
        let what = format!("containerd runs with config_path = {told:?}, its file says {written:?}");
        Finding::new(CHECK, Severity::Problem, what)
            .because("it reads its configuration when it starts")
            .mended_by([Mend::run(facts.platform.restart())])
    })
}

fn replaced(facts: &Facts) -> Option<Finding> {
    let (later, earlier) = facts.setup.replaced.as_ref()?;
    let severity = if facts.setup.config_path.is_none() { Severity::Problem } else { Severity::Note };
    Some(
        Finding::new(CHECK, severity, format!("the section at {later} replaces the one at {earlier}"))
            .because("up to containerd 1.7 an imported file isn't merged: every key of the earlier section is lost")
            .mended_by([Mend::new("move what the imported file sets into the section of", [earlier.to_string()])]),
    )
}

fn discarded(facts: &Facts) -> Option<Finding> {
    let place = facts.setup.discard_unpacked_layers.as_ref()?;
    let local =
        matches!(&facts.setup.pull_mode, PullMode::Local { because: Some(by) } if by.key == "discard_unpacked_layers");
    let list = facts.setup.config_path.as_ref().is_some_and(|path| path.folders().count() > 1);
    let mut why = "what ran here before Larder has no layers to keep; they come from a registry once more".to_owned();
    if local && list {
        why.push_str(
            "\nchanging it alone would also switch containerd to the transfer service, which ignores a list in config_path",
        );
    }
    let what = "containerd throws layers away once they are unpacked (discard_unpacked_layers)";
    Some(Finding::new(CHECK, Severity::Note, what).at(&place).because(why))
}
