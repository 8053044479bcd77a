//! Containers that run, by runc, without kubelet.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Ctr, KUBERNETES, config};
use crate::tool;

/// What the runtime and kubelet write on a container.
#[derive(Debug, Clone, Default)]
pub struct Labels(Vec<(&'static str, String)>);

/// The containers that were started, and have to be ended.
#[derive(Debug)]
pub(super) struct Running {
    socket: PathBuf,
    /// Where runc keeps what it knows.
    state: PathBuf,
    ids: Mutex<Vec<String>>,
}

impl Labels {
    /// A container of a Pod.
    pub fn of_container(namespace: &str, pod: &str, container: &str) -> Self {
        let mut labels = Self::of_pod(namespace, pod, "container");
        labels.0.push(("io.kubernetes.container.name", container.to_owned()));
        labels
    }

    /// A Pod's sandbox.
    pub fn of_sandbox(namespace: &str, pod: &str) -> Self {
        Self::of_pod(namespace, pod, "sandbox")
    }

    fn of_pod(namespace: &str, pod: &str, kind: &str) -> Self {
        Self(vec![
            ("io.cri-containerd.kind", kind.to_owned()),
            ("io.kubernetes.pod.namespace", namespace.to_owned()),
            ("io.kubernetes.pod.name", pod.to_owned()),
        ])
    }
}

impl Running {
    pub(super) fn below(folder: &Path) -> Self {
        Self { socket: config::socket(folder), state: config::runc_root(folder), ids: Mutex::default() }
    }

    pub(super) async fn start(&self, ctr: &Ctr, image: &str, labels: &Labels) -> Result<String> {
        let labels: Vec<String> = labels.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut options = vec!["--detach", "--null-io"];
        options.extend(labels.iter().flat_map(|label| ["--label", label]));
        let id = self.name();
        // An end of its own, should nobody be left to end it.
        self.run(ctr, image, &id, &options, &["/busybox", "sleep", "600"]).await?;
        Ok(id)
    }

    /// Runs any image by `ctr run` with these options; returns what that prints.
    pub(super) async fn run(
        &self,
        ctr: &Ctr,
        image: &str,
        id: &str,
        options: &[&str],
        command: &[&str],
    ) -> Result<String> {
        let (runc, state) = (tool("runc/usr/sbin/runc")?.display().to_string(), self.state.display().to_string());
        let runtime = ["run", "--runc-binary", &runc, "--runc-root", &state];
        ctr.run(KUBERNETES, &[&runtime, options, &[image, id], command].concat()).await
    }

    /// The name of a container to be. It is one of the whole machine: cgroups are named after it.
    pub(super) fn name(&self) -> String {
        let id = format!("larder-{:016x}", rand::random::<u64>());
        self.remember(id.clone());
        id
    }

    /// One that CRI has started.
    pub(super) fn remember(&self, id: String) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// The shims of this containerd. They are nobody's children.
    fn shims(&self) -> Vec<i32> {
        let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
        let ids = processes.flatten().filter_map(|process| process.file_name().to_str()?.parse().ok());
        ids.filter(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            let is_shim =
                words.next().is_some_and(|program| program.windows(15).any(|part| part == b"containerd-shim"));
            is_shim && words.any(|word| word == self.socket.as_os_str().as_encoded_bytes())
        })
        .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ids = std::mem::take(self.ids.get_mut().unwrap_or_else(PoisonError::into_inner));
        let Ok(runc) = tool("runc/usr/sbin/runc") else { return };
        let state = self.state.join(KUBERNETES);
        // The shims first: once their containers have ended they would wait for a containerd that is gone.
        if !ids.is_empty() {
            for shim in self.shims() {
                let _ = kill(Pid::from_raw(shim), Signal::SIGKILL);
            }
        }
        for id in ids {
            let mut delete = Command::new(&runc);
            delete.arg("--root").arg(&state).args(["delete", "--force", &id]);
            let _ = delete.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}
