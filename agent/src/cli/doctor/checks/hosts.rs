use std::path::Path;

use crate::cli::doctor::facts::{Authority, Facts, Folder, Root, Unlisted, same_path};
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::cli::doctor::hosts_file::{Host, HostsFile};
use crate::cli::doctor::mend;
use crate::config::HostsTarget;
use crate::containerd::client::Version;

const CHECK: &str = "hosts";
const DEFAULT: &str = "_default";

/// Whether our entry is in the hosts.toml files that containerd will read, and nothing goes before it.
pub(super) fn hosts(facts: &Facts) -> Vec<Finding> {
    let Some(root) = facts.own_root() else { return Vec::new() };
    let folders = match &root.folders {
        Ok(folders) => folders,
        Err(Unlisted::Unreadable(reason)) => {
            let what = format!("{} can't be read: {reason}", root.path.display());
            return vec![Finding::new(CHECK, Severity::Unknown, what)];
        }
        Err(Unlisted::Missing) => {
            let what = format!("{} doesn't exist", root.path.display());
            return vec![Finding::new(CHECK, Severity::Problem, what).mended_by(mend::enter_ourselves(facts))];
        }
    };
    let mut findings: Vec<Finding> = missing(facts, folders).collect();
    let mut sound = Vec::new();
    for folder in folders {
        let of_folder = examine(facts, root, folder);
        if of_folder.is_empty() && is_wanted(facts, &folder.name) {
            sound.push(folder.name.as_str());
        }
        findings.extend(of_folder);
    }
    findings.extend(earlier_roots(facts, root));
    if !sound.is_empty() {
        let what = format!("{} has our entry first for {}", root.path.display(), sound.join(", "));
        findings.push(Finding::new(CHECK, Severity::Ok, what));
    }
    findings
}

/// The folders that we should be in but that don't exist.
fn missing<'a>(facts: &'a Facts, folders: &'a [Folder]) -> impl Iterator<Item = Finding> + 'a {
    let targets = &facts.config.containerd.registries;
    let has_default = targets.contains(&HostsTarget::Default);
    let exists = |name: &str| folders.iter().any(|folder| folder.name == name);
    let absent = move |target: &&HostsTarget| match target {
        HostsTarget::Default => !exists(DEFAULT),
        HostsTarget::Registry(registry) => !has_default && !names(registry.as_str()).any(|name| exists(&name)),
    };
    targets.iter().filter(absent).map(|target| {
        let path = facts.config.containerd.hosts_dir.join(target.folder());
        Finding::new(CHECK, Severity::Problem, format!("there is no entry for {}", target.folder()))
            .at(&path.display())
            .because("containerd doesn't come to the mirror for it")
            .mended_by(mend::enter_ourselves(facts))
    })
}

/// The names of a registry's folder, in the order in which containerd tries them.
fn names(registry: &str) -> impl Iterator<Item = String> {
    let with_port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    with_port.into_iter().chain([registry.to_owned()])
}

/// Whether this folder should have our entry: it is configured, or it would win over `_default`.
fn is_wanted(facts: &Facts, name: &str) -> bool {
    facts.config.containerd.registries.iter().any(|target| match target {
        HostsTarget::Default => true,
        HostsTarget::Registry(registry) => names(registry.as_str()).any(|one| one == name),
    })
}

fn examine(facts: &Facts, root: &Root, folder: &Folder) -> Vec<Finding> {
    let file = folder.path(root).join("hosts.toml");
    let ours = |host: &&Host| is_ours(facts, host);
    let mut findings = Vec::new();
    let mut add =
        |finding: Finding| findings.push(if finding.place.is_none() { finding.at(&file.display()) } else { finding });
    if is_wanted(facts, &folder.name) && !folder.file.hosts().iter().any(|host| ours(&host)) {
        add(without_us(facts, folder, &file));
    }
    for (at, host) in folder.file.hosts().iter().enumerate() {
        let place = format!("{}:{}", file.display(), host.line);
        for finding in authorities(facts, host).chain(by_version(facts, host)) {
            add(finding.at(&place));
        }
        if ours(&host) {
            for finding in our_host(facts, folder, host, at) {
                add(finding.at(&place));
            }
        }
    }
    findings
}

fn without_us(facts: &Facts, folder: &Folder, file: &Path) -> Finding {
    let name = &folder.name;
    let finding = |what: String| Finding::new(CHECK, Severity::Problem, what);
    let wins = "the folder wins over _default, so that containerd doesn't come to the mirror for it";
    let why = if name == DEFAULT { "containerd doesn't come to the mirror" } else { wins };
    match &folder.file {
        HostsFile::Unreadable(reason) => {
            Finding::new(CHECK, Severity::Unknown, format!("{} can't be read: {reason}", file.display()))
        }
        HostsFile::Malformed { line, message } => finding(format!("the hosts.toml for {name} is no TOML: {message}"))
            .at(&format!("{}:{line}", file.display()))
            .because("containerd logs that, and pulls without any mirror")
            .mended_by([Mend::new("mend it, then run", ["larder hosts apply"])]),
        HostsFile::Absent => finding(format!("the folder for {name} has no hosts.toml"))
            .because(why)
            .mended_by(mend::enter_ourselves(facts)),
        HostsFile::Parsed { .. } => finding(format!("the hosts.toml for {name} doesn't name the mirror"))
            .because(why)
            .mended_by(mend::enter_ourselves(facts)),
    }
}

/// Whether a host is our mirror: its port, at its address or at this machine by another name.
fn is_ours(facts: &Facts, host: &Host) -> bool {
    let listen = facts.config.mirror.listen;
    let answers_here = listen.ip().is_loopback() || listen.ip().is_unspecified();
    let leads_here = host.ip() == Some(listen.ip()) || (answers_here && host.is_this_machine());
    host.port() == Some(listen.port()) && leads_here
}

fn our_host(facts: &Facts, folder: &Folder, host: &Host, at: usize) -> Vec<Finding> {
    let name = &folder.name;
    let problem = |what: String| Finding::new(CHECK, Severity::Problem, what).mended_by(mend::enter_ourselves(facts));
    let note = |what: String| Finding::new(CHECK, Severity::Note, what);
    let mut findings = Vec::new();
    if !(host.can("pull") && host.can("resolve")) {
        findings.push(problem(format!("our entry for {name} lacks a capability: it takes \"pull\" and \"resolve\"")));
    }
    if !host.is_plain() && host.ca.is_empty() && !host.skip_verify {
        findings.push(
            problem(format!("our entry for {name} is https:// without ca"))
                .because("containerd doesn't know this node's own CA, and passes the mirror by"),
        );
    }
    if host.is_plain() && (host.skip_verify || !host.ca.is_empty()) {
        findings.push(
            note(format!("our entry for {name} is http:// with ca or skip_verify"))
                .because("containerd 1.6.25, 1.7.8 and later try TLS first then"),
        );
    }
    if at > 0 {
        let first = folder.file.hosts().first().map_or("", |host| host.url.as_str());
        findings.push(note(format!("for {name} containerd asks {first} before the mirror")));
    }
    if !host.has_header && facts.version().is_none_or(|version| version.major >= 2) {
        findings.push(
            problem(format!("our entry for {name} has no table header of its own"))
                .because("containerd 2.x sees only hosts that are written [host.\"https://…\"]"),
        );
    }
    findings
}

/// Files that a host names as `ca`. One that is missing fails every pull, whoever's host it is.
fn authorities<'a>(facts: &'a Facts, host: &'a Host) -> impl Iterator<Item = Finding> + 'a {
    host.ca.iter().filter_map(|ca| {
        let what = match facts.authorities.get(ca)? {
            // It may well be there on the host.
            Authority::Missing if !facts.surroundings.sees(ca) => {
                let what = format!("{} names ca = {}, which isn't seen from this Pod", host.url, ca.display());
                return Some(
                    Finding::new(CHECK, Severity::Note, what)
                        .because(
                            "the agent keeps this host out of its own chain; containerd asks it as before, after us",
                        )
                        .mended_by([mend::mount(ca)]),
                );
            }
            Authority::Missing => format!("{} names ca = {}, which doesn't exist", host.url, ca.display()),
            Authority::NotPem => format!("{} names ca = {}, which has no certificate", host.url, ca.display()),
            Authority::Unreadable(_) | Authority::Valid { .. } => return None,
        };
        Some(
            Finding::new(CHECK, Severity::Problem, what)
                .because("every pull that reads this file fails, and goes to no other host")
                .mended_by([Mend::new(
                    "put the file back, or take the line out; ours comes back with",
                    ["larder hosts apply"],
                )]),
        )
    })
}

/// What one version takes and another doesn't.
fn by_version<'a>(facts: &'a Facts, host: &'a Host) -> impl Iterator<Item = Finding> + 'a {
    let version = facts.version();
    let before = move |limit| version.is_some_and(|version| version < limit);
    let referrers = host.capabilities.as_ref().is_some_and(|all| all.iter().any(|one| one == "referrers"));
    let referrers = (referrers && before(Version::new(2, 2, 0))).then(|| {
        Finding::new(CHECK, Severity::Problem, format!("{} has the capability \"referrers\"", host.url))
            .because("before 2.2 containerd doesn't know it, and takes the whole file for malformed: no mirror is used")
            .mended_by([Mend::new("write", ["capabilities = [\"pull\", \"resolve\"]"])])
    });
    let slow = host.dial_timeout
        && host.is_plain()
        && version.is_some_and(|v| (Version::new(2, 0, 7)..Version::new(2, 1, 0)).contains(&v));
    let slow = slow.then(|| {
        Finding::new(CHECK, Severity::Note, format!("{} has dial_timeout beside http://", host.url))
            .because("containerd 2.0.7 and later 2.0 try TLS first then")
    });
    let bracket = (host.url.contains('[') && host.has_header && before(Version::new(2, 0, 0))).then(|| {
        let (how, lines) = match is_ours(facts, host) {
            true => (
                "listen on IPv4's loopback, which nodes without IPv4 have too: write into larder.toml",
                vec!["[mirror]", "listen = \"127.0.0.1:7439\""],
            ),
            false => ("name the host, in DNS or in /etc/hosts, and write", vec!["[host.\"https://NAME\"]"]),
        };
        Finding::new(CHECK, Severity::Problem, format!("{} is an address of IPv6", host.url))
            .because(
                "before 2.0 containerd can't read a table's name with a bracket in it: no host of the file is used",
            )
            .mended_by([Mend::new(how, lines)])
    });
    referrers.into_iter().chain(slow).chain(bracket)
}

/// In a list, each folder is searched whole before the next: `_default` in an earlier one hides all of ours.
fn earlier_roots(facts: &Facts, own: &Root) -> Vec<Finding> {
    let earlier = facts.roots.iter().take_while(|root| !same_path(&root.path, &own.path));
    let hides = |root: &Root, folder: &Folder| {
        let hidden = if folder.name == DEFAULT { "everything".to_owned() } else { folder.name.clone() };
        Finding::new(
            CHECK,
            Severity::Problem,
            format!("for {hidden} containerd looks into {} first", root.path.display()),
        )
        .at(&folder.path(root).display())
        .because("config_path is a list, and this folder comes before ours")
        .mended_by([Mend::new(
            "move it into our folder, then run",
            [format!("mv {} {}/ && larder hosts apply", folder.path(root).display(), own.path.display())],
        )])
    };
    let wanted = |folder: &&Folder| is_wanted(facts, &folder.name) || folder.name == DEFAULT;
    let of_root = |root: &Root| -> Vec<Finding> {
        root.folders.iter().flatten().filter(wanted).map(|folder| hides(root, folder)).collect()
    };
    earlier.flat_map(of_root).collect()
}
