//! Which distribution made this node: each has its own place for containerd's files, and its own way to change them.

use std::path::Path;

/// The distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Platform {
    /// containerd from its own packages or a Linux distribution's: kubeadm, bare metal.
    Plain,
    K3s,
    Rke2,
    Microk8s,
    K0s,
    Talos,
    Bottlerocket,
    /// Amazon Linux 2023 on EKS, set up by nodeadm.
    Eks,
    Aks,
    Gke,
    Kind,
    Minikube,
}

/// Where a distribution keeps what the configuration of Larder has to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Paths {
    pub(super) socket: &'static str,
    pub(super) config: &'static str,
}

/// Where everybody else keeps it.
const PLAIN: Paths = Paths { socket: "/run/containerd/containerd.sock", config: "/etc/containerd/config.toml" };

impl Platform {
    /// From what is on the disk; `os_release` is the text of that file, `kernel` what `uname -r` says: in a Pod it is all
    /// that tells of some.
    pub(super) fn detect(exists: impl Fn(&Path) -> bool, os_release: &str, kernel: &str) -> Self {
        let field = |name: &str| {
            let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches('"')
        };
        let has = |path: &str| exists(Path::new(path));
        match field("ID") {
            "talos" => return Self::Talos,
            "bottlerocket" => return Self::Bottlerocket,
            _ if kernel.ends_with("-talos") => return Self::Talos,
            _ => {}
        }
        // In the order of how sure the sign is: kind's nodes are Debian, minikube's may be anything.
        let signs: [(Self, &[&str]); 9] = [
            (Self::Rke2, &["/var/lib/rancher/rke2/agent/etc/containerd"]),
            (Self::K3s, &["/var/lib/rancher/k3s/agent/etc/containerd"]),
            (Self::Microk8s, &["/var/snap/microk8s/current/args"]),
            (Self::K0s, &["/etc/k0s/containerd.toml", "/run/k0s/containerd.sock"]),
            (Self::Kind, &["/kind/version", "/kind/product_name"]),
            (Self::Minikube, &["/var/lib/minikube"]),
            (Self::Gke, &["/home/kubernetes/kube-env", "/home/kubernetes/bin"]),
            (Self::Aks, &["/etc/kubernetes/azure.json"]),
            (Self::Eks, &["/usr/bin/nodeadm", "/etc/eks/nodeadm"]),
        ];
        let by_kernel = if kernel.contains(".amzn2023.") { Self::Eks } else { Self::Plain };
        signs.iter().find(|(_, paths)| paths.iter().any(|path| has(path))).map_or(by_kernel, |(found, _)| *found)
    }

    /// As people call it; `None` for plain containerd.
    pub(super) const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::Plain => return None,
            Self::K3s => "k3s",
            Self::Rke2 => "RKE2",
            Self::Microk8s => "MicroK8s",
            Self::K0s => "k0s",
            Self::Talos => "Talos",
            Self::Bottlerocket => "Bottlerocket",
            Self::Eks => "EKS",
            Self::Aks => "AKS",
            Self::Gke => "GKE",
            Self::Kind => "kind",
            Self::Minikube => "minikube",
        })
    }

    /// Where its files are.
    pub(super) const fn paths(self) -> Paths {
        match self {
            Self::K3s => Paths {
                socket: "/run/k3s/containerd/containerd.sock",
                config: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
            },
            Self::Rke2 => Paths {
                socket: "/run/k3s/containerd/containerd.sock",
                config: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
            },
            Self::Microk8s => Paths {
                socket: "/var/snap/microk8s/common/run/containerd.sock",
                config: "/var/snap/microk8s/current/args/containerd.toml",
            },
            Self::K0s => Paths { socket: "/run/k0s/containerd.sock", config: "/etc/k0s/containerd.toml" },
            Self::Talos => Paths { socket: "/run/containerd/containerd.sock", config: "/etc/cri/containerd.toml" },
            _ => PLAIN,
        }
    }

    /// The preset of the chart and of the kustomization for it.
    pub(super) const fn preset(self) -> &'static str {
        match self {
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::Microk8s => "microk8s",
            Self::Talos => "talos",
            Self::Eks => "eks",
            Self::Aks => "aks",
            Self::Gke => "gke",
            Self::Kind => "kind",
            Self::Plain | Self::K0s | Self::Bottlerocket | Self::Minikube => "plain",
        }
    }

    /// The command that restarts containerd, where one is needed after a change of its configuration.
    pub(super) const fn restart(self) -> &'static str {
        match self {
            Self::K3s => "systemctl restart k3s        # on an agent: k3s-agent",
            Self::Rke2 => "systemctl restart rke2-server   # on an agent: rke2-agent",
            Self::Microk8s => "microk8s stop && microk8s start",
            Self::K0s => "systemctl restart k0sworker   # on a controller: k0scontroller",
            _ => "systemctl restart containerd",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_by_their_signs() {
        for (path, platform) in [
            ("/var/lib/rancher/k3s/agent/etc/containerd", Platform::K3s),
            ("/var/lib/rancher/rke2/agent/etc/containerd", Platform::Rke2),
            ("/var/snap/microk8s/current/args", Platform::Microk8s),
            ("/run/k0s/containerd.sock", Platform::K0s),
            ("/kind/version", Platform::Kind),
            ("/var/lib/minikube", Platform::Minikube),
            ("/home/kubernetes/bin", Platform::Gke),
            ("/etc/kubernetes/azure.json", Platform::Aks),
            ("/usr/bin/nodeadm", Platform::Eks),
            ("/etc/kubernetes/admin.conf", Platform::Plain),
        ] {
            assert_eq!(Platform::detect(|p| p == Path::new(path), "ID=debian\n", "6.1.0-1-amd64"), platform, "{path}");
        }
        assert_eq!(Platform::detect(|_| false, "NAME=\"Talos\"\nID=talos\n", ""), Platform::Talos);
        assert_eq!(Platform::detect(|_| false, "ID=\"bottlerocket\"\n", ""), Platform::Bottlerocket);
        // In a Pod, whose files are its own.
        assert_eq!(Platform::detect(|_| false, "", "6.12.6-talos"), Platform::Talos);
        assert_eq!(Platform::detect(|_| false, "", "6.1.112-122.189.amzn2023.x86_64"), Platform::Eks);
    }
}
