//! A node: a machine with containerd and kubelet, in the places where every distribution's defaults have them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::control::{ControlPlane, program};
use super::dns::ClusterDns;
use super::machine::NodeMachine;
use crate::{Host, Process, Release, tool, until};

// Two cores that also build take many times what an idle machine takes, which is 5 s.
const START: Duration = Duration::from_secs(90);
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const HOSTS_DIR: &str = "/etc/containerd/certs.d";
const KUBELET_CONFIG: &str = "/etc/kubernetes/kubelet.json";
const NETWORKS: &str = "/etc/cni/net.d";
const NETWORK_PROGRAMS: &str = "/etc/cni/bin";
/// Where runc keeps what it knows.
const RUNC_STATE: &str = "/run/runc";

/// What a node is before it joins; see [`KubernetesNode::join`].
#[derive(Debug, Clone, Copy)]
pub struct Joining<'a> {
    /// Its name in the cluster.
    pub name: &'a str,
    /// Its containerd, 2.1 or newer.
    pub release: Release,
    /// Where `reg.test` is, `http://…`: from there it has the image of sandboxes, `reg.test/pause:3`.
    pub registry: &'a str,
}

/// A node of a cluster, with kubelet and containerd on a [`NodeMachine`]. Pods get addresses; no Service has one that works.
/// Dropped, all of it ends.
#[derive(Debug)]
pub struct KubernetesNode {
    name: String,
    release: Release,
    // kubelet first: it would start again what ends.
    processes: Vec<Process>,
    machine: NodeMachine,
}

impl KubernetesNode {
    /// Starts a node on a machine of the network, and waits until the cluster finds it ready.
    pub async fn join(control: &ControlPlane, host: &Host, node: Joining<'_>) -> Result<Self> {
        host.add_route(ClusterDns::NETWORK)?;
        let machine = NodeMachine::new(host)?;
        write(&machine, CONTAINERD_CONFIG, containerd_config()?)?;
        // A table of hosts too, as a user would have it.
        let hosts =
            format!("server = {0:?}\n\n[host.{0:?}]\n  capabilities = [\"pull\", \"resolve\"]\n", node.registry);
        write(&machine, &format!("{HOSTS_DIR}/reg.test/hosts.toml"), hosts)?;
        network_of_pods(&machine)?;
        write(&machine, KUBELET_CONFIG, kubelet_config(control, host).to_string())?;
        let mut joined = Self { name: node.name.to_owned(), release: node.release, processes: Vec::new(), machine };
        joined.power_on(control).await?;
        Ok(joined)
    }

    /// Everything that runs on it is killed, as by a loss of power. What is on its disk stays.
    pub fn power_off(&mut self) {
        self.processes.clear();
        self.machine.kill_all();
    }

    /// Starts containerd and kubelet again after [`KubernetesNode::power_off`], and waits until the cluster finds it ready.
    pub async fn power_on(&mut self, control: &ControlPlane) -> Result<()> {
        self.run(&self.release.program("containerd")?, &[format!("--config={CONTAINERD_CONFIG}")])?;
        until("containerd answers", START, async || self.ctr(&["version"]).await.ok()).await?;
        let user = format!("system:node:{}", self.name);
        let arguments = [
            format!("--config={KUBELET_CONFIG}"),
            format!("--kubeconfig={}", control.kubeconfig_of(&user, "system:nodes")?.display()),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", self.machine.host().address()),
            "--v=2".to_owned(),
        ];
        self.run(&program("kubelet")?, &arguments)?;
        until("the node is ready", START, async || self.is_ready(control).await.ok().filter(|ready| *ready))
            .await
            .map(drop)
    }

    async fn is_ready(&self, control: &ControlPlane) -> Result<bool> {
        let node = control.api().get(&format!("/api/v1/nodes/{}", self.name)).await?;
        let conditions = node["status"]["conditions"].as_array().context("a node without conditions")?;
        // The taint that new nodes have goes a moment later.
        let is_tainted = node["spec"]["taints"].as_array().is_some_and(|taints| !taints.is_empty());
        Ok(!is_tainted
            && conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"))
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its machine: the files that Pods find on their node.
    pub fn machine(&self) -> &NodeMachine {
        &self.machine
    }

    /// The folder of hosts.toml files, as the test sees it.
    pub fn hosts_dir(&self) -> PathBuf {
        self.machine.path(HOSTS_DIR)
    }

    /// Runs `ctr` on it, in CRI's namespace; returns what it prints.
    pub async fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let all = [&["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"], arguments].concat();
        let output = self.machine.run(&self.release.program("ctr")?, &all).await?;
        ensure!(output.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What the containers of this name have written, of all Pods that have been here and whose logs are still there.
    pub fn logs_of(&self, container: &str) -> String {
        let folders = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let pods = folders(self.machine.path("/var/log/pods"));
        let logs = pods.flat_map(|pod| folders(pod.join(container)));
        logs.filter_map(|log| std::fs::read_to_string(log).ok()).collect()
    }

    fn run(&mut self, program: &std::path::Path, arguments: &[String]) -> Result<()> {
        let name = program.file_name().context("a program without a name")?;
        let log = self.machine.path("/var/log").join(name);
        self.processes.insert(0, Process::start_wrapped(&self.machine.wrapper(), program, arguments, &[], log)?);
        Ok(())
    }
}

impl Drop for KubernetesNode {
    fn drop(&mut self) {
        self.processes.clear();
        // Containers, so that none of their control groups is left.
        let state = self.machine.path(RUNC_STATE).join("k8s.io");
        let Ok(runc) = tool("runc/usr/sbin/runc") else { return };
        self.machine.kill_all();
        for container in std::fs::read_dir(&state).into_iter().flatten().flatten() {
            let mut delete = std::process::Command::new(&runc);
            delete.arg("--root").arg(&state).args(["delete", "--force"]).arg(container.file_name());
            let _ = delete.output();
        }
    }
}

fn write(machine: &NodeMachine, path: &str, text: String) -> Result<()> {
    let path = machine.path(path);
    std::fs::create_dir_all(path.parent().context("a file in a folder")?)?;
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// What gives Pods a network where they want one of their own.
fn network_of_pods(machine: &NodeMachine) -> Result<()> {
    let script = include_str!("network_of_pods.sh");
    // containerd's own configuration of loopback names the other one.
    for name in ["network-of-pods", "loopback"] {
        let path = format!("{NETWORK_PROGRAMS}/{name}");
        write(machine, &path, script.to_owned())?;
        std::fs::set_permissions(machine.path(&path), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let list = json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": [{ "type": "network-of-pods" }] });
    write(machine, &format!("{NETWORKS}/pods.conflist"), list.to_string())
}

fn containerd_config() -> Result<String> {
    let runc = tool("runc/usr/sbin/runc")?;
    Ok(format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = {CONTAINERD_SOCKET:?}
[debug]
  level = "debug"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.runtime"]
  # To lower a process's score takes a capability that root in a container may lack.
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [{NETWORK_PROGRAMS:?}]
  conf_dir = {NETWORKS:?}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = {runc:?}
  Root = {RUNC_STATE:?}
[plugins."io.containerd.cri.v1.images"]
  pinned_images = {{ sandbox = "reg.test/pause:3" }}
[plugins."io.containerd.cri.v1.images".registry]
  config_path = {HOSTS_DIR:?}
"#
    ))
}

fn kubelet_config(control: &ControlPlane, host: &Host) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "address": host.address(),
        "authentication": { "x509": { "clientCAFile": control.ca() } },
        "clusterDNS": [ClusterDns::address()],
        "clusterDomain": "cluster.local",
        // What a machine may lack: a newer cgroup, its own part of a hierarchy, no swap, a disk with room.
        "failCgroupV1": false,
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "volumePluginDir": "/var/lib/kubelet/plugins-of-volumes",
        // Tests wait for what kubelet does; at its own pace it looks once in a minute.
        "syncFrequency": "1s",
        "nodeStatusUpdateFrequency": "1s",
    })
}
