//! A real containerd, with root, state, sockets and configuration in a folder of its own.

mod config;
mod cri;
mod ctr;
mod pod;
mod run;
mod snapshotter;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use config::ContainerdConfig;
pub use cri::Login;
pub use ctr::Ctr;
pub use pod::{HostMount, Pod, StartedPod};
pub use run::Labels;
pub use snapshotter::RemoteSnapshotter;

use crate::{Namespace, Process, Release, until};
use cri::Cri;
use run::Running;

// Slow machines take seconds to start it; a pull of these tests that takes a minute hangs.
const START: Duration = Duration::from_secs(30);
const PULL: Duration = Duration::from_secs(60);

/// The namespace of CRI.
const KUBERNETES: &str = "k8s.io";

/// A containerd. Dropped, it is killed, and then its containers.
#[derive(Debug)]
pub struct Containerd {
    release: Release,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    namespace: Option<Namespace>,
    expects_cri: bool,
    process: Option<Process>,
    // After containerd, whose containers don't end with it.
    running: Running,
}

impl Containerd {
    /// Starts one in `folder`, and waits until it answers.
    pub async fn start(release: Release, folder: &Path, config: &ContainerdConfig) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        config.write(release, folder)?;
        let mut containerd = Self {
            release,
            folder: folder.to_owned(),
            environment: config.environment.clone(),
            namespace: config.namespace.clone(),
            expects_cri: config.expects_cri,
            process: None,
            running: Running::below(folder),
        };
        containerd.start_again().await?;
        Ok(containerd)
    }

    /// Runs it again after [`Containerd::kill`], and waits until it answers.
    pub async fn start_again(&mut self) -> Result<()> {
        let arguments = ["--config".into(), config::path(&self.folder)];
        let log = self.folder.join("log");
        let (namespace, program) = (self.namespace.as_ref(), self.release.program("containerd")?);
        self.process = Some(Process::start_in(namespace, &program, arguments, &self.environment, log)?);
        let cri = self.cri();
        let what = format!("{} answers", self.release);
        until(&what, START, async || {
            if self.expects_cri { cri.version().await.ok() } else { self.ctr(&["version"]).await.ok() }
        })
        .await?;
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGSTOP.
    pub fn freeze(&self) -> Result<()> {
        self.process()?.freeze()
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.process()?.thaw()
    }

    /// Which one it is.
    pub fn release(&self) -> Release {
        self.release
    }

    /// Its gRPC socket.
    pub fn socket(&self) -> PathBuf {
        config::socket(&self.folder)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        config::path(&self.folder)
    }

    /// Its root folder, which holds the content store.
    pub fn root(&self) -> PathBuf {
        config::root(&self.folder)
    }

    /// All that it has logged, at level debug.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Pulls an image as kubelet does, through CRI. Returns its id. An error is containerd's own message.
    pub async fn pull(&self, image: &str) -> Result<String> {
        self.pull_by(image, None).await
    }

    /// The same with credentials, as kubelet passes them on from a pull secret.
    pub async fn pull_as(&self, image: &str, login: &Login) -> Result<String> {
        self.pull_by(image, Some(login)).await
    }

    async fn pull_by(&self, image: &str, login: Option<&Login>) -> Result<String> {
        let pull = async { self.cri().pull(image, login).await };
        tokio::time::timeout(PULL, pull).await.with_context(|| format!("pulling {image} hangs for {PULL:?}"))?
    }

    /// Pulls an image by `ctr` with this folder of hosts, into the namespace `default`.
    pub async fn ctr_pull(&self, image: &str, hosts_dir: &Path) -> Result<String> {
        let hosts_dir = hosts_dir.to_str().context("hosts_dir isn't UTF-8")?;
        self.ctr(&["images", "pull", "--hosts-dir", hosts_dir, image]).await
    }

    /// Runs `ctr` with these arguments, in the namespace `default`; returns what it prints.
    pub async fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.ctr_in("default", arguments).await
    }

    async fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        self.client()?.run(namespace, arguments).await
    }

    /// What runs `ctr` for it, also when this is lent to somebody else.
    pub fn client(&self) -> Result<Ctr> {
        let program = self.release.program("ctr")?;
        Ok(Ctr { program, socket: self.socket(), network: self.namespace.clone() })
    }

    /// Runs the program of [`Image::runnable`](crate::Image::runnable) in a container, in CRI's namespace, until it is
    /// stopped; returns the container's id. CRI itself has to have pulled the image.
    pub async fn run(&self, image: &str, labels: &Labels) -> Result<String> {
        self.running.start(&self.client()?, image, labels).await
    }

    /// Runs an image by `ctr run`, in CRI's namespace, with these options; returns what it prints. The command takes the
    /// place of the image's entrypoint and command, unless it is empty. It ends with this containerd, if not by itself.
    pub async fn run_with(&self, image: &str, options: &[&str], command: &[&str]) -> Result<String> {
        self.running.run(&self.client()?, image, &self.running.name(), options, command).await
    }

    /// Runs an image, [runnable](crate::Image::runnable) as that of the sandbox, `reg.test/pause:3`, as the one container
    /// of a Pod, through CRI and on the node's own network; returns the container's id.
    pub async fn run_pod(&self, namespace: &str, pod: &str, image: &str) -> Result<String> {
        let (sandbox, container) = self.cri().run_pod(namespace, pod, image).await?;
        self.running.remember(sandbox);
        self.running.remember(container.clone());
        Ok(container)
    }

    /// Ends what runs in the container, which stays.
    pub async fn stop(&self, container: &str) -> Result<()> {
        self.ctr_in(KUBERNETES, &["tasks", "kill", "--signal", "KILL", container]).await?;
        let ended = async || {
            let tasks = self.ctr_in(KUBERNETES, &["tasks", "ls"]).await.ok()?;
            tasks.lines().find(|line| line.starts_with(container))?.contains("STOPPED").then_some(())
        };
        until("the container has stopped", Duration::from_secs(10), ended).await?;
        self.ctr_in(KUBERNETES, &["tasks", "rm", container]).await.map(drop)
    }

    /// Removes a container that was stopped.
    pub async fn remove(&self, container: &str) -> Result<()> {
        self.ctr_in(KUBERNETES, &["containers", "rm", container]).await.map(drop)
    }

    /// Runs `ctr` with these arguments, in CRI's namespace; returns what it prints.
    pub async fn ctr_of_cri(&self, arguments: &[&str]) -> Result<String> {
        self.ctr_in(KUBERNETES, arguments).await
    }

    /// Removes an image by its id, as CRI gave it, with the names that begin so, and waits until its content is gone.
    pub async fn forget(&self, names: &str, id: &str) -> Result<()> {
        let all = self.ctr_of_cri(&["images", "ls", "--quiet"]).await?;
        let of_it: Vec<&str> = all.lines().filter(|name| *name == id || name.starts_with(names)).collect();
        self.ctr_of_cri(&[&["images", "rm", "--sync"], of_it.as_slice()].concat()).await.map(drop)
    }

    /// Where it keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.root().join("io.containerd.content.v1.content/blobs").join(digest.replace(':', "/"))
    }

    /// The names of the images that CRI has.
    pub async fn images(&self) -> Result<Vec<String>> {
        self.cri().images().await
    }

    /// The digests that it holds, in the namespaces of CRI and of `ctr`.
    pub async fn content(&self) -> Result<Vec<String>> {
        let mut digests = Vec::new();
        for namespace in [KUBERNETES, "default"] {
            let list = self.ctr_in(namespace, &["content", "ls", "--quiet"]).await?;
            digests.extend(list.lines().map(str::to_owned));
        }
        Ok(digests)
    }

    /// Removes every image, and waits until their content and snapshots are gone.
    pub async fn wipe(&self) -> Result<()> {
        for namespace in [KUBERNETES, "default"] {
            let ctr = async |arguments: &[&str]| self.ctr_in(namespace, arguments).await;
            until("containerd is empty", Duration::from_secs(30), async || {
                // Leases of pulls that failed hold what they had got.
                for (list, remove) in [(["leases", "ls"], "leases"), (["images", "ls"], "images")] {
                    let names = ctr(&[list[0], list[1], "--quiet"]).await.ok()?;
                    let names: Vec<&str> = names.lines().collect();
                    if !names.is_empty() {
                        ctr(&[&[remove, "rm", "--sync"], names.as_slice()].concat()).await.ok()?;
                    }
                }
                let content = ctr(&["content", "ls", "--quiet"]).await.ok()?;
                let snapshots = ctr(&["snapshots", "ls"]).await.ok()?;
                // One line of headings.
                (content.is_empty() && snapshots.lines().count() <= 1).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    fn cri(&self) -> Cri {
        Cri::new(self.socket())
    }

    fn process(&self) -> Result<&Process> {
        match &self.process {
            Some(process) => Ok(process),
            None => bail!("{} isn't running", self.release),
        }
    }
}
