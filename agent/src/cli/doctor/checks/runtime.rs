use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Mend, Severity};
use crate::cli::doctor::mend;
use crate::containerd::client::{ClientError, PluginState, Version};

/// Releases that get no fixes any more: major and minor.
const END_OF_LIFE: [(u16, u16); 3] = [(1, 6), (2, 0), (2, 1)];

/// Whether containerd answers, which one it is, and whether it serves kubelet.
pub(super) fn runtime(facts: &Facts) -> Vec<Finding> {
    let release = match &facts.runtime.release {
        Ok(release) => release,
        Err(error) => return vec![unreachable(facts, error)],
    };
    let socket = facts.config.containerd.socket.display();
    let on = facts.platform.name().map_or_else(String::new, |name| format!(" on {name}"));
    let mut findings =
        vec![Finding::new("containerd", Severity::Ok, format!("containerd {}{on} answers at {socket}", release.text))];
    match release.version {
        Some(version) => findings.extend(known_faults(version)),
        None => findings.push(
            Finding::new("containerd", Severity::Note, format!("{:?} is no version that is known", release.text))
                .because("its configuration is read as by 1.7, or by 2.1 where its format is 3 or more"),
        ),
    }
    if let Some(plugins) = &facts.runtime.plugins {
        findings.extend(cri(facts, plugins));
    }
    findings
}

fn unreachable(facts: &Facts, error: &ClientError) -> Finding {
    let finding = |severity| Finding::new("containerd", severity, error.to_string());
    let start =
        Mend::new("start it, and see why it stopped", ["systemctl start containerd", "journalctl --unit containerd"]);
    match error {
        ClientError::PermissionDenied { .. } => {
            finding(Severity::Unknown).mended_by([Mend::new("run as root", ["sudo larder doctor"])])
        }
        ClientError::SocketMissing { socket } => {
            let usual = std::path::Path::new(facts.platform.paths().socket);
            let elsewhere = (usual != socket.as_path()).then(|| mend::larder_toml("socket", usual));
            finding(Severity::Problem).mended_by(elsewhere.into_iter().chain([start]))
        }
        _ => finding(Severity::Problem).mended_by([start]),
    }
}

fn known_faults(version: Version) -> Option<Finding> {
    let note = |what: String| Finding::new("containerd", Severity::Note, what);
    if version < Version::new(1, 6, 0) {
        return Some(
            Finding::new("containerd", Severity::Problem, format!("containerd {version} is older than 1.6"))
                .because("kubelet's interface in its present version starts with 1.6")
                .mended_by([Mend::new("install containerd 1.7 or 2.x", Vec::<String>::new())]),
        );
    }
    if (Version::new(2, 1, 0)..Version::new(2, 1, 3)).contains(&version) {
        let why = "with concurrent_layer_fetch_buffer a mirror's answer can be put together wrongly; 2.1.3 mends it";
        return Some(note(format!("containerd {version} has a fault in parallel fetching")).because(why));
    }
    END_OF_LIFE.contains(&(version.major, version.minor)).then(|| {
        note(format!("containerd {}.{} is at the end of its life", version.major, version.minor))
            .because("it works with Larder, but gets no fixes")
    })
}

fn cri(facts: &Facts, plugins: &[PluginState]) -> Option<Finding> {
    let restart = Mend::new("mend what it says", Vec::<String>::new()).then(facts.platform.restart());
    let failed = plugins.iter().filter_map(|plugin| Some((plugin, plugin.error.as_ref()?)));
    // The half that pulls says why; the others only that they miss it.
    if let Some((plugin, error)) = failed.max_by_key(|(plugin, _)| plugin.uri.ends_with(".images")) {
        let what = format!("containerd's plugin {} isn't loaded: kubelet can't pull at all", plugin.uri);
        return Some(Finding::new("containerd", Severity::Problem, what).because(error).mended_by([restart]));
    }
    // Said at its line by the check of the configuration, where that can be read.
    (plugins.is_empty() && facts.setup.cri_disabled.is_none()).then(|| {
        Finding::new("containerd", Severity::Problem, "containerd has no plugin that serves kubelet")
            .because("only kubelet's pulls and tools that are told of the hosts folder come through the mirror")
            .mended_by([Mend::new(
                format!("take \"cri\" out of disabled_plugins in {}", facts.setup_file.display()),
                ["disabled_plugins = []"],
            )
            .then(facts.platform.restart())])
    })
}
