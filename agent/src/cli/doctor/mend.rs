//! The lines that mend a wrong set-up, by distribution and by version of containerd.

use std::path::Path;

use super::facts::Facts;
use super::finding::Mend;
use super::platform::Platform;
use crate::containerd::client::Version;
use crate::containerd::setup::Fault;

/// Sets `config_path` to one folder.
pub(super) fn set_config_path(facts: &Facts, folder: &Path) -> Vec<Mend> {
    let line = format!("  config_path = \"{}\"", folder.display());
    let lines = [table(facts), line.clone()];
    let restart = facts.platform.restart();
    let edit = match facts.setup.config_path.as_ref().and_then(|path| path.place.as_ref()) {
        Some(place) => Mend::new(format!("write in place of {place}"), [line]),
        None => Mend::new(format!("write into {}", facts.setup_file.display()), whole(facts, &lines)),
    };
    match facts.platform {
        Platform::Plain | Platform::Minikube | Platform::Aks => vec![edit.then(restart)],
        Platform::K3s | Platform::Rke2 => vec![
            Mend::new(
                format!(
                    "{} writes config_path itself; a template of yours has left it out. Begin {} with",
                    facts.platform.name().unwrap_or_default(),
                    facts.setup_file.with_file_name(template(facts)).display()
                ),
                ["{{ template \"base\" . }}"],
            )
            .then(restart),
        ],
        Platform::Microk8s => {
            let template = "write into /var/snap/microk8s/current/args/containerd-template.toml";
            vec![
                Mend::new(
                    template,
                    [
                        "[plugins.\"io.containerd.grpc.v1.cri\".registry]",
                        "  config_path = \"${SNAP_DATA}/args/certs.d\"",
                    ],
                )
                .then(restart),
            ]
        }
        Platform::K0s => {
            let version = format!("version = {}", facts.setup.format.max(2));
            let lines = [vec![version], lines.to_vec()].concat();
            vec![Mend::new("write into /etc/k0s/containerd.d/larder.toml", lines).then(restart)]
        }
        Platform::Eks => vec![Mend::new(
            "in the node's user data (nodeadm), which then overrides the generated file",
            [
                "apiVersion: node.eks.aws/v1alpha1".to_owned(),
                "kind: NodeConfig".to_owned(),
                "spec:".to_owned(),
                "  containerd:".to_owned(),
                "    config: |".to_owned(),
                format!("      {}", lines[0]),
                format!("      {}", lines[1]),
            ],
        )],
        Platform::Kind => vec![Mend::new(
            "in the cluster's configuration, for kind create cluster --config",
            [
                "kind: Cluster".to_owned(),
                "apiVersion: kind.x-k8s.io/v1alpha4".to_owned(),
                "containerdConfigPatches:".to_owned(),
                "- |-".to_owned(),
                format!("  {}", lines[0]),
                format!("  {}", lines[1]),
            ],
        )],
        Platform::Talos | Platform::Bottlerocket | Platform::Gke => enter_ourselves(facts),
    }
}

/// The template that k3s and RKE2 make containerd's file from: each format has one of its own.
fn template(facts: &Facts) -> &'static str {
    if is_from_2_0(facts) { "config-v3.toml.tmpl" } else { "config.toml.tmpl" }
}

/// Keeps a list of folders working, by the code that understands one.
pub(super) fn pull_locally(facts: &Facts) -> Option<Mend> {
    let writable = matches!(facts.platform, Platform::Plain | Platform::Minikube | Platform::Aks | Platform::Kind);
    // Files of an older format have no name for this key.
    (writable && facts.setup.format >= 3).then(|| {
        let lines = ["[plugins.'io.containerd.cri.v1.images']", "  use_local_image_pull = true"];
        Mend::new(format!("keep the list, and write into {}", facts.setup_file.display()), lines)
            .then(facts.platform.restart())
    })
}

/// Brings our entry into the folder of hosts.toml files.
pub(super) fn enter_ourselves(facts: &Facts) -> Vec<Mend> {
    // Plain HTTP, which the port speaks too: these have no place for the CA of one node.
    let endpoint = format!("http://{}", facts.config.mirror.listen);
    match facts.platform {
        Platform::Talos => vec![
            Mend::new(
                "the folder is generated; from Talos 1.12 on patch the machine configuration with",
                [
                    "apiVersion: v1alpha1".to_owned(),
                    "kind: RegistryMirrorConfig".to_owned(),
                    "name: '*'".to_owned(),
                    "endpoints:".to_owned(),
                    format!("  - url: {endpoint}"),
                ],
            ),
            Mend::new(
                "before Talos 1.12",
                [
                    "machine:".to_owned(),
                    "  registries:".to_owned(),
                    "    mirrors:".to_owned(),
                    "      '*':".to_owned(),
                    format!("        endpoints: ['{endpoint}']"),
                ],
            ),
        ],
        Platform::Bottlerocket => vec![Mend::new(
            "the folder is generated from the settings; in the node's user data",
            [
                "[[settings.container-registry.mirrors]]".to_owned(),
                "registry = \"*\"".to_owned(),
                format!("endpoint = [\"{endpoint}\"]"),
            ],
        )],
        Platform::Gke => vec![Mend::new(
            "for each registry, in a runtime configuration file for gcloud container clusters update \
             --containerd-config-from-file",
            [
                "registryHosts:".to_owned(),
                "- server: \"https://registry.example\"".to_owned(),
                "  hosts:".to_owned(),
                format!("  - host: \"{endpoint}\""),
                "    capabilities: [HOST_CAPABILITY_PULL, HOST_CAPABILITY_RESOLVE]".to_owned(),
            ],
        )],
        _ => vec![Mend::run("larder hosts apply")],
    }
}

/// Shows a folder of the host to the Pod, at its own path.
pub(super) fn mount(file: &Path) -> Mend {
    let folder = file.parent().unwrap_or(file);
    let lines = [
        "host:".to_owned(),
        "  paths:".to_owned(),
        format!("    - path: {}", folder.display()),
        "      type: Directory".to_owned(),
    ];
    Mend::new("mount its folder: in the chart's values", lines)
}

/// Brings the configuration of Larder in line with where things are.
pub(super) fn larder_toml(key: &str, value: &Path) -> Mend {
    let lines = ["[containerd]".to_owned(), format!("{key} = \"{}\"", value.display())];
    Mend::new("write into larder.toml", lines)
}

/// The header of the section that has `config_path`.
fn table(facts: &Facts) -> String {
    match plugin(facts) {
        "cri" => "[plugins.cri.registry]".to_owned(),
        images if images.ends_with(".images") => format!("[plugins.'{images}'.registry]"),
        cri => format!("[plugins.\"{cri}\".registry]"),
    }
}

/// Whether this is containerd 2.0 or later, by the format of its file where it doesn't say its version.
fn is_from_2_0(facts: &Facts) -> bool {
    facts.version().map_or(facts.setup.format >= 3, |version| version >= Version::new(2, 0, 0))
}

/// The plugin whose section has `config_path`, by the name that it has in files of this format.
pub(super) fn plugin(facts: &Facts) -> &'static str {
    match facts.setup.format {
        // 2.0 to 2.2 take a file without a version for one of format 3, once they have read it.
        format if is_from_2_0(facts) && (format != 2 || is_absent(facts)) => "io.containerd.cri.v1.images",
        1 if !is_absent(facts) => "cri",
        _ => "io.containerd.grpc.v1.cri",
    }
}

/// The format of a file that isn't there yet.
pub(super) fn new_format(facts: &Facts) -> u8 {
    if plugin(facts).ends_with(".images") { 3 } else { 2 }
}

/// A file that isn't there yet needs its format in the first line.
fn whole(facts: &Facts, lines: &[String]) -> Vec<String> {
    if !is_absent(facts) {
        return lines.to_vec();
    }
    std::iter::once(format!("version = {}", new_format(facts))).chain(lines.iter().cloned()).collect()
}

/// Whether containerd has no file, and runs on its defaults.
fn is_absent(facts: &Facts) -> bool {
    facts.setup.faults.iter().any(|fault| matches!(fault, Fault::NoRootFile(_)))
}
