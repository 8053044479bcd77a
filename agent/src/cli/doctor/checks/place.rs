use std::path::Path;

use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Severity};

/// Where this runs, where it isn't the host: what is said of files holds for what is mounted.
pub(super) fn place(facts: &Facts) -> Vec<Finding> {
    if !facts.surroundings.is_pod {
        return Vec::new();
    }
    let config = &facts.config.containerd;
    let looked: [&Path; 4] = [&facts.containerd_root, &config.hosts_dir, &config.config, &config.socket];
    let seen: Vec<_> =
        looked.iter().filter(|path| facts.surroundings.sees(path)).map(|path| path.display().to_string()).collect();
    let on = facts.platform.name().map_or_else(String::new, |name| format!(" on {name}"));
    let of_host = if seen.is_empty() { "nothing".to_owned() } else { seen.join(", ") };
    vec![Finding::new("place", Severity::Ok, format!("this is a Pod{on}, and sees of the host: {of_host}"))]
}
