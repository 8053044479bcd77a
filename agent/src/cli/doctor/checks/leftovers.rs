//! What other mirrors of this node have left in the hosts folder.

use crate::cli::doctor::facts::{Facts, Folder, Root};
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::cli::doctor::hosts_file::Host;

const CHECK: &str = "hosts";
/// Where Spegel listens, by its chart: hostPort and nodePort of its registry.
const SPEGEL: [u16; 2] = [30020, 30021];
/// Where Spegel keeps the files that were there before it.
const SPEGELS_BACKUP: &str = "_backup";

/// Entries for a mirror on this machine that isn't us, and that nobody is behind.
pub(super) fn leftovers(facts: &Facts) -> Vec<Finding> {
    let Some(root) = facts.own_root() else { return Vec::new() };
    let Ok(folders) = &root.folders else { return Vec::new() };
    let mut findings: Vec<_> = folders.iter().flat_map(|folder| of_folder(facts, root, folder)).collect();
    if folders.iter().any(|folder| folder.name == SPEGELS_BACKUP) {
        let place = root.path.join(SPEGELS_BACKUP);
        findings.push(
            Finding::new(CHECK, Severity::Note, "Spegel has put the files aside that were here before it")
                .at(&place.display())
                .because("containerd takes the folder for that of a registry with this name, which does no harm")
                .mended_by([Mend::new(
                    "once Spegel is uninstalled, and what you want of it is back in its place",
                    [format!("rm -r {}", place.display())],
                )]),
        );
    }
    findings
}

fn of_folder(facts: &Facts, root: &Root, folder: &Folder) -> Vec<Finding> {
    let file = folder.path(root).join("hosts.toml");
    let dead = folder.file.hosts().iter().filter_map(|host| Some((host, port_here(facts, host)?)));
    let finding = |(host, port): (&Host, u16)| {
        let whose = if SPEGEL.contains(&port) { "Spegel's mirror" } else { "a mirror on this machine" };
        Finding::new(CHECK, Severity::Note, format!("{} is {whose}, and nobody listens there", host.url))
            .at(&format!("{}:{}", file.display(), host.line))
            .because(
                "containerd asks it whenever the hosts before it have nothing; what left it there is gone, perhaps",
            )
            .mended_by([Mend::new("take the table out of the user's own file, then run", ["larder hosts apply"])])
    };
    dead.map(finding).collect()
}

/// The port of a host that is this machine and not us, where nobody has it.
fn port_here(facts: &Facts, host: &Host) -> Option<u16> {
    let port = host.port()?;
    let is_here = host.is_this_machine() || SPEGEL.contains(&port);
    (is_here && port != facts.config.mirror.listen.port() && !facts.taken_ports.contains(&port)).then_some(port)
}
