//! Pods of one container, through CRI, as kubelet asks for them.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use larder_proto::cri::{
    Capability, ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest,
    ImageSpec, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, MountPropagation, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest, SecurityProfile, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};

use larder_proto::cri::security_profile::ProfileType;

use super::Containerd;
use super::cri::said;

/// What kubelet makes of a Pod's specification. It is on the node's own network.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name, which is its uid too.
    pub name: String,
    /// The image of its container.
    pub image: String,
    /// In the place of the image's command.
    pub arguments: Vec<String>,
    /// Variables.
    pub environment: Vec<(String, String)>,
    /// What it has of the host.
    pub mounts: Vec<HostMount>,
    /// Capabilities that it has besides the runtime's default ones.
    pub added: Vec<String>,
    /// Capabilities that it has not; `ALL` of them.
    pub dropped: Vec<String>,
    /// User and group.
    pub user: Option<(i64, i64)>,
    /// Whether nothing of the image can be written.
    pub has_read_only_root: bool,
    /// Whether a program can't get more rights than its caller has.
    pub has_no_new_privileges: bool,
    /// Whether the runtime's seccomp profile is in force.
    pub has_default_seccomp: bool,
    /// A folder for what it logs.
    pub logs: PathBuf,
}

/// A folder of the host.
#[derive(Debug, Clone)]
pub struct HostMount {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Where it is in the container.
    pub container: PathBuf,
    /// Whether nothing in it can be written.
    pub is_read_only: bool,
    /// Whether what the host mounts and unmounts below it comes and goes in the container too.
    pub follows_host: bool,
}

/// A Pod that was started.
#[derive(Debug, Clone)]
pub struct StartedPod {
    sandbox: String,
    container: String,
    log: PathBuf,
}

impl StartedPod {
    /// The id of its container.
    pub fn id(&self) -> &str {
        &self.container
    }

    /// All that it has logged, each line as CRI writes it.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Containerd {
    /// Starts a Pod. Its image, and that of the sandbox, have to be there.
    pub async fn start_pod(&self, pod: &Pod) -> Result<StartedPod> {
        std::fs::create_dir_all(&pod.logs)?;
        let mut runtime = self.cri().runtime().await?;
        let sandbox_config = pod.sandbox();
        let request = RunPodSandboxRequest { config: Some(sandbox_config.clone()) };
        let sandbox = runtime.run_pod_sandbox(request).await.map_err(|status| said(&status))?.into_inner();
        let sandbox = sandbox.pod_sandbox_id;
        self.running.remember(sandbox.clone());
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(pod.container()),
            sandbox_config: Some(sandbox_config),
        };
        let container = runtime.create_container(request).await.map_err(|status| said(&status))?.into_inner();
        let container = container.container_id;
        self.running.remember(container.clone());
        let request = StartContainerRequest { container_id: container.clone() };
        runtime.start_container(request).await.map_err(|status| said(&status))?;
        Ok(StartedPod { sandbox, container, log: pod.logs.join(LOG) })
    }

    /// Runs a command in it, as a probe does: its exit status, and what it has said.
    pub async fn exec(&self, pod: &StartedPod, command: &[&str]) -> Result<(i32, String)> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = ExecSyncRequest { container_id: pod.container.clone(), cmd, timeout: 10 };
        let mut runtime = self.cri().runtime().await?;
        let reply = runtime.exec_sync(request).await.map_err(|status| said(&status))?.into_inner();
        let said = [reply.stdout, reply.stderr].concat();
        Ok((reply.exit_code, String::from_utf8_lossy(&said).into_owned()))
    }

    /// The process of its container, as the host sees it.
    pub async fn process_of(&self, pod: &StartedPod) -> Result<u32> {
        let request = ContainerStatusRequest { container_id: pod.container.clone(), verbose: true };
        let mut runtime = self.cri().runtime().await?;
        let reply = runtime.container_status(request).await.map_err(|status| said(&status))?.into_inner();
        let info = reply.info.get("info").context("no info of a container")?;
        let info: serde_json::Value = serde_json::from_str(info)?;
        let id = info["pid"].as_u64().and_then(|id| u32::try_from(id).ok());
        id.context("a container without a process")
    }

    /// Ends it: SIGTERM, and SIGKILL after `grace` seconds; and removes it.
    pub async fn end_pod(&self, pod: &StartedPod, grace: i64) -> Result<()> {
        let mut runtime = self.cri().runtime().await?;
        let request = StopContainerRequest { container_id: pod.container.clone(), timeout: grace };
        runtime.stop_container(request).await.map_err(|status| said(&status))?;
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        runtime.stop_pod_sandbox(request).await.map_err(|status| said(&status))?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        runtime.remove_pod_sandbox(request).await.map_err(|status| said(&status))?;
        Ok(())
    }
}

/// The log's name in its folder.
const LOG: &str = "larder.log";

impl Pod {
    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([
            ("io.kubernetes.pod.namespace".to_owned(), self.namespace.clone()),
            ("io.kubernetes.pod.name".to_owned(), self.name.clone()),
        ])
    }

    fn seccomp(&self) -> SecurityProfile {
        let profile = if self.has_default_seccomp { ProfileType::RuntimeDefault } else { ProfileType::Unconfined };
        SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() }
    }

    fn sandbox(&self) -> PodSandboxConfig {
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption { network: NamespaceMode::Node.into() }),
            seccomp: Some(self.seccomp()),
        };
        let (name, namespace) = (self.name.clone(), self.namespace.clone());
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { uid: name.clone(), name, namespace }),
            log_directory: self.logs.display().to_string(),
            labels: self.labels(),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(context) }),
        }
    }

    fn container(&self) -> ContainerConfig {
        let value = |value| Int64Value { value };
        let context = LinuxContainerSecurityContext {
            capabilities: Some(Capability {
                add_capabilities: self.added.clone(),
                drop_capabilities: self.dropped.clone(),
            }),
            namespace_options: Some(NamespaceOption { network: NamespaceMode::Node.into() }),
            run_as_user: self.user.map(|(user, _)| value(user)),
            run_as_group: self.user.map(|(_, group)| value(group)),
            readonly_rootfs: self.has_read_only_root,
            no_new_privs: self.has_no_new_privileges,
            masked_paths: MASKED.map(str::to_owned).to_vec(),
            readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
            seccomp: Some(self.seccomp()),
        };
        let mut labels = self.labels();
        labels.insert("io.kubernetes.container.name".to_owned(), "larder".to_owned());
        let envs = self.environment.iter().cloned();
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "larder".to_owned() }),
            image: Some(ImageSpec { image: self.image.clone(), ..ImageSpec::default() }),
            args: self.arguments.clone(),
            envs: envs.map(|(key, value)| KeyValue { key, value }).collect(),
            mounts: self.mounts.iter().map(HostMount::mount).collect(),
            labels,
            log_path: LOG.to_owned(),
            linux: Some(LinuxContainerConfig { security_context: Some(context) }),
        }
    }
}

// What kubelet hides of /proc from every container that isn't privileged.
const MASKED: [&str; 4] = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"];
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/sys", "/proc/sysrq-trigger"];

impl HostMount {
    fn mount(&self) -> Mount {
        let propagation = match self.follows_host {
            true => MountPropagation::PropagationHostToContainer,
            false => MountPropagation::PropagationPrivate,
        };
        Mount {
            container_path: self.container.display().to_string(),
            host_path: self.host.display().to_string(),
            readonly: self.is_read_only,
            propagation: propagation.into(),
        }
    }
}
