//! Where each distribution has containerd: told here once more, apart from the chart, since the two ways of installing
//! can only be compared with each other.

use std::path::Path;

use serde_json::Value;

use super::render::{PRESETS, chart_of, list, object};

/// A preset; containerd's root, its socket, the folder of its hosts.toml files, and its configuration.
const PLACES: [[&str; 5]; 9] = [
    // As containerd's own defaults are, and as `config_path` is set where a distribution sets it.
    [
        "plain",
        "/var/lib/containerd",
        "/run/containerd/containerd.sock",
        "/etc/containerd/certs.d",
        "/etc/containerd/config.toml",
    ],
    [
        "eks",
        "/var/lib/containerd",
        "/run/containerd/containerd.sock",
        "/etc/containerd/certs.d",
        "/etc/containerd/config.toml",
    ],
    [
        "aks",
        "/var/lib/containerd",
        "/run/containerd/containerd.sock",
        "/etc/containerd/certs.d",
        "/etc/containerd/config.toml",
    ],
    [
        "kind",
        "/var/lib/containerd",
        "/run/containerd/containerd.sock",
        "/etc/containerd/certs.d",
        "/etc/containerd/config.toml",
    ],
    // Where GKE puts what `registryHosts` says.
    [
        "gke",
        "/var/lib/containerd",
        "/run/containerd/containerd.sock",
        "/etc/containerd/hosts.d",
        "/etc/containerd/config.toml",
    ],
    // The containerd of Kubernetes; the system's own has another socket and configuration.
    [
        "talos",
        "/var/lib/containerd",
        "/run/containerd/containerd.sock",
        "/etc/cri/conf.d/hosts",
        "/etc/cri/containerd.toml",
    ],
    // Both below their data folder, and both with the socket of k3s.
    [
        "k3s",
        "/var/lib/rancher/k3s/agent/containerd",
        "/run/k3s/containerd/containerd.sock",
        "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
        "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    ],
    [
        "rke2",
        "/var/lib/rancher/rke2/agent/containerd",
        "/run/k3s/containerd/containerd.sock",
        "/var/lib/rancher/rke2/agent/etc/containerd/certs.d",
        "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    ],
    // ${SNAP_COMMON} and ${SNAP_DATA}.
    [
        "microk8s",
        "/var/snap/microk8s/common/var/lib/containerd",
        "/var/snap/microk8s/common/run/containerd.sock",
        "/var/snap/microk8s/current/args/certs.d",
        "/var/snap/microk8s/current/args/containerd.toml",
    ],
];

/// What a Pod mounts as its volume of this name, of the host and where.
fn mounted<'a>(pod: &'a Value, name: &str) -> [Option<&'a str>; 2] {
    let find = |of: &str| list(pod, of).iter().find(|part| part["name"] == name);
    let volume = find("/volumes").and_then(|volume| volume["hostPath"]["path"].as_str());
    let mount = find("/containers/0/volumeMounts").and_then(|mount| mount["mountPath"].as_str());
    [volume, mount]
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn every_preset_is_where_its_distribution_has_containerd() {
    assert!(PRESETS.iter().all(|preset| PLACES.iter().any(|[name, ..]| name == preset)), "a preset isn't known here");
    for [preset, root, socket, hosts, config] in PLACES {
        let parent = |path: &'static str| Path::new(path).parent().and_then(Path::to_str).unwrap();
        let objects = chart_of(preset).unwrap();
        // The agent's objects, and those of what cleans up after it.
        for name in ["larder", "larder-clean-up"] {
            let pod = &object(&objects, "DaemonSet", name).unwrap()["spec"]["template"]["spec"];
            for (volume, path) in [
                ("containerd-root", root),
                ("containerd-run", parent(socket)),
                ("containerd-hosts", hosts),
                ("containerd-etc", parent(config)),
            ] {
                assert_eq!(mounted(pod, volume), [Some(path); 2], "{preset}: {name}: {volume}");
            }
            let text = object(&objects, "ConfigMap", name).unwrap()["data"]["larder.toml"].as_str();
            let told: toml::Table = text.unwrap().parse().unwrap();
            for (key, path) in [("socket", socket), ("hosts_dir", hosts), ("config", config)] {
                assert_eq!(told["containerd"][key].as_str(), Some(path), "{preset}: {name}: {key}");
            }
            assert_eq!(told["cache"]["dir"].as_str(), Some(format!("{root}/larder").as_str()), "{preset}: {name}");
        }
    }
}
